"""Rows on disk: JSON Lines, and the samples of a split."""
