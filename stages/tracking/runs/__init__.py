"""Runs in MLflow: what a stage says while it works, and what is remembered of earlier runs."""
