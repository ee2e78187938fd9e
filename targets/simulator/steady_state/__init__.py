"""Simulates repeated layers once: finds the period, compares states and skips repetitions."""
