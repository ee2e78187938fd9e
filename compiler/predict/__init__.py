"""Predicts times of single operators from their sizes."""
