"""Measurements, run by a command and never as a test: make bench, make bench-learning."""
