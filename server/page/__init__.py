"""The operator's page: what is true now, read-only, for this machine alone; it changes nothing."""
