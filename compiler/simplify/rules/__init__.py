"""Rules that clean a model up, by subject."""
