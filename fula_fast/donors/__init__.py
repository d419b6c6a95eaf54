"""Donors: trained from their recipe, found in the cache, or loaded from a checkpoint."""
