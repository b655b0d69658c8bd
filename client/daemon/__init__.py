"""Decides on one signed instruction at a time; it computes no image and imports no torch."""
