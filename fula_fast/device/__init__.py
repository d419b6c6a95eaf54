"""What the device is asked: memory, precision, and graphs of recorded work."""
