"""What only makes the private step faster; no promise rests on it."""
