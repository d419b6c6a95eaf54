"""Device batches of a set, the same numbers from every backend."""
