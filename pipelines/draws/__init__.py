"""Randomness as arrays, and what is drawn with it: orders, crops, flips, markers, noise."""
