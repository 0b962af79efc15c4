"""MLflow and the registry: runs, versions of model folders, and the champion."""
