"""The paper's own alignment, generator and feature networks, for comparison alone."""
