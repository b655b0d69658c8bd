"""Private training on one site."""
