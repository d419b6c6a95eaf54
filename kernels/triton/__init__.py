"""Triton kernels and their launchers, one module per noun.

A launcher takes checked tensors, allocates every output, and launches; it neither synchronises with
the host nor tunes. Kernels see activations as rows of channels: (sample, position, channel) with
any strides, channels-last being the fast case. Sums over rows leave one partial per program and are
finished by a second kernel in a fixed order: no atomics, so the same input gives the same bits.

Kernels may run in Triton's interpreter (TRITON_INTERPRET=1, set before this package is imported).
"""

import os

# Newer Triton warns unless this is decided; contracting a*b+c is what PyTorch's own kernels do.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
