"""Changes to `params.yaml`: a recipe copied over it, single values set in place."""
