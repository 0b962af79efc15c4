"""What came from what: git, DVC's lock and cache, by hash."""
