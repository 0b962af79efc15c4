"""Stage ``evaluate``: a policy on held-out samples."""
