"""Registered model versions: made, found, explained, served, removed."""
