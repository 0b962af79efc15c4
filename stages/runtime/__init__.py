"""Where and how stages run: none of it changes a result."""
