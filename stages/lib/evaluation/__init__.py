"""Held-out samples and the rows of scores."""
