"""Runs: a whole sweep, or an attack on a finished one, from spec to tables."""
