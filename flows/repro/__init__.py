"""DVC for the flows: plan, fetch, reproduce, and what lies around a run of it."""
