"""Rewards over a group and what they are watched by: shaping, gauges, difficulty, rollouts."""
