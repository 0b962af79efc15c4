"""Curation of clips: recordings by their names, shots and flags, near-duplicates."""
