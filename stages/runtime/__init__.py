"""Runtime of the stages on a machine: paths, processes, caches. Nothing in this package changes a
result."""
