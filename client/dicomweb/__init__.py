"""Reads images of a DICOMweb server into a sealed folder; it never writes to a server."""
