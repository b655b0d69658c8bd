"""Files, journal and lock on disk; it never reads a file without a size cap."""
