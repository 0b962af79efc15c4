"""Processes and servers that a flow starts, and what they run in."""
