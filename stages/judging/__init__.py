"""Judges: whoever says how good an answer is. They know the domain and nothing else of the project."""
