"""Commands on a whole project: create, diagnose, run, accept."""
