"""Inspect and edit data without running a stage: check, browse, export, remove."""
