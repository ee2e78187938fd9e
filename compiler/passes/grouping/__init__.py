"""Passes that partition a graph into groups, one per kernel, and regroup where that is faster."""
