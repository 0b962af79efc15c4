"""The cost of a planned run."""
