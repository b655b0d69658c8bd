"""Trains public starting checkpoints; it never touches a running study."""
