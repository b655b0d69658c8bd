"""The demonstration: a rehearsal with invented hospitals; no real study depends on it."""
