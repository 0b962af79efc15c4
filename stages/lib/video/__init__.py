"""Video files: probe, encoder, reader, and the loader that applies a sample's edits to frames."""
