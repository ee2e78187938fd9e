"""Passes that rewrite a graph into the forms that kernels support."""
