"""Servers started and ended by a person: one that answers with a registered model, and Prefect's
and MLflow's pages.
"""
