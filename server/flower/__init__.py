"""Flower's stock SuperLink as child processes and the operator's calls on it; it decides nothing
about privacy.
"""
