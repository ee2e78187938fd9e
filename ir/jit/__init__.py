"""Functions compiled to machine code by numba, and the store that keeps what was compiled."""
