"""What crosses between site and server; it never deserializes code."""
