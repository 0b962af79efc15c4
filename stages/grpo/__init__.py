"""Stage ``grpo``: reinforcement learning with video."""
