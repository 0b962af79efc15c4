"""Stage ``corpus``: the generated world of shapes."""
