"""Simplification rules, by subject."""
