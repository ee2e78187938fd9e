"""Lowering of groups to kernels: kernel kinds, the cost model, tile search and its caches."""
