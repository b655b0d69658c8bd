"""The wire of a site: Flower's Fleet calls, outbound only; it never runs code of the server."""
