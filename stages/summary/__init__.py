"""Stage ``summary``: one table of all scores."""
