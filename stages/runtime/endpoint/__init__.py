"""OpenAI-compatible endpoints: their settings, requests to them, and the cache of their answers."""
