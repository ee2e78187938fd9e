"""Offloading: nodes that run on the host, and nodes compiled at run time, when their sizes are known."""
