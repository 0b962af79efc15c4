"""Published annotation files, each with the format that reads it and the videos that it needs."""
