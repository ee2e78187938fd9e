"""Targets: machine descriptions, instruction set, artifacts, cost formulas and the simulator."""
