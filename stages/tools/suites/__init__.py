"""Public benchmarks: ask, score, compare."""
