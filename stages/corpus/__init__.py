"""Stage ``corpus``: the generated corpus of moving shapes."""
