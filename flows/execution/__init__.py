"""The stages of a plan as Prefect tasks, and what Prefect displays of them."""
