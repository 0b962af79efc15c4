"""Runs, registries that strangers wrote to, and scores before the gate."""
