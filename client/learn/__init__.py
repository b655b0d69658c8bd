"""Trains on one site with private steps; nothing else applies a gradient of a patient."""
