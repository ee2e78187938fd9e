"""Validation of a program's tensors: the oracle, tolerances, and verdicts."""
