"""What verification compares besides outputs: inner tensors of the program with those of the model."""
