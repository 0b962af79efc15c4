"""Engines that speak the rollout engine's protocol without vLLM."""
