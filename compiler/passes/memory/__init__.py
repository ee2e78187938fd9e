"""Passes that assign memory spaces and addresses to values."""
