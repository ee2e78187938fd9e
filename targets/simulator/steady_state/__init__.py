"""Layers that repeat are simulated once: finding the period, skipping it, and comparing states."""
