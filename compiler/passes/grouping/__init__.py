"""Passes that cut a graph into kernels, and regroup what pays."""
