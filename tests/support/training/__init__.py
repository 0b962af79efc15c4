"""Training that takes a second: tiny models, both trainers, runs on several ranks."""
