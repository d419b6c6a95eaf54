"""What the kernels share: the choice of a backend, checks, memory layouts, device code, tiles."""
