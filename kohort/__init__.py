"""What a researcher runs: verify, pull and list releases; it imports nothing else of this repository."""
