"""The host's share of a model: which nodes, in which order with the PPU's, and the process that runs them."""
