"""Code that at least two stages use."""
