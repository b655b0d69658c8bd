"""Public images, pairs of image and mask, and phantoms; it never sees a hospital's data."""
