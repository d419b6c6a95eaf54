"""What the kernels share: choice of a backend, checks, layouts, operators, device code, tiles."""
