"""Generation of replies, and the cache of vision features."""
