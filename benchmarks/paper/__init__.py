"""The paper's own alignment, generator and feature networks: for comparison, never in a study."""
