"""Video files in and out: one prober, one reader, one writer, and the edits that a sample applies to sampled frames."""
