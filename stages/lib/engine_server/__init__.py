"""Server of the rollout engine, which runs in the engine's environment."""
