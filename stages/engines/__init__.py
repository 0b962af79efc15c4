"""Who answers a benchmark's questions: a model in this process, or one behind an OpenAI-compatible endpoint."""
