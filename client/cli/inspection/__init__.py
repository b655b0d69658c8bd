"""Looks at everything that would stop a run; it changes nothing."""
