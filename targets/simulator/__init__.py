"""targets/simulator."""
