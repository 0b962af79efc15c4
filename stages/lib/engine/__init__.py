"""What speaks to the rollout engine, which has an environment and a process of its own."""
