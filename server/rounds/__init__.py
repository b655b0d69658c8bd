"""A study's loop: ask, gather, check, average, remember; it never opens a port."""
