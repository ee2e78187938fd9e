"""What a command found about a model, as one record that reports, comparisons and notebooks read."""
