"""Host execution: partitioning a model between PPU and host, compiling the parts, and running host models in a worker
process."""
