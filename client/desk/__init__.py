"""The review desk: a local page on which people decide on images. It calls nobody."""
