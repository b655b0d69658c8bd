"""Measures images against public data; it never reads what a hospital holds."""
