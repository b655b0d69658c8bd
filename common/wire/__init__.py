"""What crosses between site and server: messages, tensors, signatures; it never deserializes code."""
