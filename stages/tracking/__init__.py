"""MLflow and the registry: what happened (runs), which model folders exist (versions), which one is in use (the champion)."""
