"""Pages that are generated from the code when the documentation is built."""
