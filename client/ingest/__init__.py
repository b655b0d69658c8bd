"""Turns a hospital's files into a frozen, patient-indexed cohort.

It never stores or logs what a header says.
"""
