"""Stage ``synthesize``: samples of every task, from clips."""
