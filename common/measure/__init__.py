"""What images are worth and what they give away, as measurements; it never decides what leaves."""
