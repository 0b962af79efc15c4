"""Judges: an endpoint to order, clients of it, a writer beside them, replies that attack them."""
