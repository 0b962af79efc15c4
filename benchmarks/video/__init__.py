"""Benchmark of video: reading, editing, synthesis."""
