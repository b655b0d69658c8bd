"""Rehearses a plan on the site's own cohort: it spends nothing, and nothing of it ever leaves."""
