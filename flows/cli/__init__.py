"""The command ``vidbridge``, a module for each group of commands."""
