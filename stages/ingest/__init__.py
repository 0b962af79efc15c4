"""Stage ``ingest``: from a source folder to clips."""
