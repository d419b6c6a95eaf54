"""GPU and CPU kernels."""
