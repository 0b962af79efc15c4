"""Stage ``base``: the base policy."""
