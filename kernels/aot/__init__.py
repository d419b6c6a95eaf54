"""Ahead-of-time compilation: `python -m fula_fast.kernels.aot OUTPUT_FOLDER`."""
