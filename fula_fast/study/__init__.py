"""What was asked, without torch: a spec, its cells, their waves, and what they will cost."""
