"""Agreement of the judges with labelled pairs."""
