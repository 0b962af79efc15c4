"""Benchmarks in their published annotation formats, a module each: rows, prompt, frames,
scoring."""
