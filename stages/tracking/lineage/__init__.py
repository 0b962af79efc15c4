"""Where results come from: git, ``dvc.yaml``, ``dvc.lock`` and DVC's cache."""
