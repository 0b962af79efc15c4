"""Models and processors: loading, settings, chat template, positions."""
