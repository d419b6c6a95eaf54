"""Benchmarks, one module per subject."""
