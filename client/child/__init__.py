"""Computes one job in a confined process; it decides nothing and sends nothing."""
