"""Fuzzes every parser of bytes from outside: a value, or one of our own errors, and nothing else.

`python -m tests.fuzz` runs it for long; the normal suite runs a few thousand inputs of each target.
"""
