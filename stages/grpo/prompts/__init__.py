"""Which prompts a generation samples: the shares of the tasks, and rounds of dynamic sampling."""
