"""The methods that train a stitch, and what they minimise."""
