"""What a program's tensors should be: the oracle, what error is allowed, and the verdict."""
