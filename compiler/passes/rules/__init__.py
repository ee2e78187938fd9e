"""Rewrite rules by subject; the passes of normalise/ say which of them they apply."""
