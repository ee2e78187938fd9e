"""The cycle-approximate simulator: an event loop, and readers of its log for values, hazards and traces."""
