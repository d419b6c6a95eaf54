"""Files of ours: written whole (`atomic`), and read back only as what was written (`sealed`)."""
