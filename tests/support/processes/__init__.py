"""Processes that share what a run of the tests pays for: imports, projects, servers."""
