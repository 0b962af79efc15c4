"""Held-out evaluation: its samples, and the records of its results."""
