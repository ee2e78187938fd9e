"""What kernels are put together from: iteration spaces, nests, bodies and vector programs."""
