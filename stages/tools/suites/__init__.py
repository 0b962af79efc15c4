"""Public benchmarks: evaluate, score, compare."""
