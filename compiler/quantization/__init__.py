"""Quantization: calibration, plans, emulation, repair and search."""
