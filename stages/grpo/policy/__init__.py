"""Passes of the policy: generation of rollouts, and log-probabilities with their videos."""
