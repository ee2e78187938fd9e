"""Predicted times of single operators, from their sizes."""
