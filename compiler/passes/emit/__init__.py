"""Kernels to instruction streams: rings, counters and queues."""
