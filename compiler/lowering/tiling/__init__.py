"""Building blocks of kernels: iteration spaces, loop nests, bodies and vector programs."""
