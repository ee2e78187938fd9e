"""Comparison of inner tensors of a program with those of the model."""
