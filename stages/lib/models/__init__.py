"""Models and processors: loading, chat template, positions."""
