"""Measurements: each script prints a table and, with `--json`, one JSON object; results are in RESULTS.md."""
