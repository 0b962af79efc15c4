"""Public benchmarks: their questions, their scorings, and what scoring gives."""
