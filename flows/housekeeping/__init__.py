"""Removal of content that is no longer needed, and of videos on request."""
