"""Engines that answer a benchmark's questions: a model in this process, or one behind an
endpoint."""
