"""Stage ``baselines``: scores without a model."""
