"""Rows, timelines, frames, prompts and replies: what every other part of the domain is made of."""
