"""What the PPU does not run of a model: nodes for the host, and nodes compiled when a run knows their sizes."""
