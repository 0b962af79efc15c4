"""Judges: a rule, or a model behind an endpoint."""
