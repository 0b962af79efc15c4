"""Stage ``base``: the policy that everything starts from."""
