"""Held-out evaluation: which samples are scored, and what is written of the scores."""
