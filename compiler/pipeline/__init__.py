"""Pipelines: which passes run, how they run, and what is dumped, resumed, checked and linked."""
