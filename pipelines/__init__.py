"""Data sources and streams."""
