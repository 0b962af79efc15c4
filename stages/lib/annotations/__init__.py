"""Published annotation formats, read into clips and events."""
