"""Rewards of groups of rollouts, and their monitoring: shaping, gauges, difficulty, rollouts."""
