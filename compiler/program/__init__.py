"""Compiled programs: saving, loading and running them, and variants for several sizes."""
