"""Training and generation on a GPU: ``make bench-gpu``."""
