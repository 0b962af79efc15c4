"""Judges: whoever says how good an answer is; and the client and questions that a writer shares with them.

They know the domain and nothing else of the project.
"""
