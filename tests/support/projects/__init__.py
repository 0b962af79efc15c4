"""Small projects, each made for one part of the pipeline."""
