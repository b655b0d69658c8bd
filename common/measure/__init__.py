"""Measures what images are worth and what they reveal; it never decides what leaves."""
