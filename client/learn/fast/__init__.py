"""Makes the private step faster; every back end is tried against the plain one before its first use."""
