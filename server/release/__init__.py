"""Builds, words and signs the shared release; it knows no demo and no pretraining."""
