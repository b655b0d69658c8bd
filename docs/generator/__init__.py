"""Writes the reference pages from the sources; it says nothing that the sources do not say."""
