"""Where and how stages run on a machine: paths, processes, caches. Nothing in here changes a
result."""
