"""ppuc: an ahead-of-time model compiler and simulator for PPU-class accelerators."""
