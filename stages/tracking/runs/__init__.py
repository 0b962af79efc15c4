"""Runs in MLflow: the metrics and files a stage records, and the history of earlier runs."""
