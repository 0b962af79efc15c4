"""Registered model versions: create, find, explain, serve, remove."""
