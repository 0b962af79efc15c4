"""Benchmarks in small: annotation files, and orders to evaluate."""
