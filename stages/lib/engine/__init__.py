"""Rollout engine: vLLM in an environment and a process of its own, and what speaks to it."""
