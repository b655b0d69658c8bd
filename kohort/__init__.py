"""Verifies, pulls and lists releases; it imports nothing else of this repository."""
