"""Stage ``sft``: the cold start."""
