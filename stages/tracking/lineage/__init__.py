"""Origin of results: git, ``dvc.yaml``, ``dvc.lock`` and DVC's cache."""
