"""The stitch itself: the affine map, its closed form, and where its training starts."""
