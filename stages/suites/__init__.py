"""Benchmarks in their published annotation formats, a module each: rows, prompt, frames, scoring.

They know the domain and nothing else of the project; who judges is handed to them. The next one is one file and its line in
:mod:`stages.suites.known`.
"""
