"""Makes the private step faster.

No promise rests on it, and every back end is tried against the plain one.
"""
