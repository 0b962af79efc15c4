"""Stage ``synthesize``: from clips to the samples of every task."""
