"""Trainings with several seeds: what GRPO adds, and which checkpoint to keep."""
