"""Measurements against peers and papers; each script writes one run as JSON, nothing ships it."""
