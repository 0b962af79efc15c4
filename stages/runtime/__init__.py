"""Where and how stages run: paths, processes, caches, machines. Nothing here changes a result."""
