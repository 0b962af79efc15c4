"""Judges: by rule, or a model behind an endpoint."""
