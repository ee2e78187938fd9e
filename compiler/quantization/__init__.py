"""Low-precision arithmetic that is measured: calibration, plans, emulation, repair and search."""
