"""Servers that a person starts and ends: one that answers with a registered model, and Prefect's
and MLflow's pages.
"""
