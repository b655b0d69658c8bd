"""Builds the bundle that a hospital or an operator installs without network; no side imports it."""
