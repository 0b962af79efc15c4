"""Processes of a training side by side: how many, and how they start."""
