"""Turns a cohort into k-anonymous images; nothing here sends or stores what leaves."""
