"""Generation, and the vision features that replies share."""
