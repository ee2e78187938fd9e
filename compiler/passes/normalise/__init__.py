"""Passes that bring a graph into the forms that kernels are made of."""
