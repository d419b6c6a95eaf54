"""The wave engine: a whole grid of stitches as one program, each lane equal to its cell alone."""
