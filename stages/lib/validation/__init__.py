"""Validation while training: a held-out subset that the policy in training answers."""
