"""Scheduled deployments and their work pools."""
