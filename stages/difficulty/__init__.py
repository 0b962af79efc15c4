"""Stage ``difficulty``: keep the samples that can teach a policy something."""
