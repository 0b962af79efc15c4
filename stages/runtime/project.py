"""Find the project's folder. Light: no MLflow, no DVC, no Prefect."""

from __future__ import annotations

import os
from pathlib import Path

from stages.errors import InputError
from stages.runtime.paths import PIPELINE_FILE

VARIABLE = "VIDBRIDGE_PROJECT"
#: Variables that disable telemetry in all libraries and child processes.
NO_TELEMETRY = {"DO_NOT_TRACK": "1", "DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


class ProjectError(InputError):
    """There is no project here, or ``VIDBRIDGE_PROJECT`` names a folder that is not one."""

    status = 2


def find_project() -> Path | None:
    """Find the project's absolute path: ``VIDBRIDGE_PROJECT``, or the nearest folder upward with
    ``dvc.yaml``. None: outside of one.

    Raises:
        ProjectError: ``VIDBRIDGE_PROJECT`` names a folder without ``dvc.yaml``.
    """
    if value := os.environ.get(VARIABLE):
        root = Path(value).expanduser().resolve()
        if not (root / PIPELINE_FILE).is_file():
            raise ProjectError(
                VARIABLE, f"{value!r} holds no {PIPELINE_FILE}", "name the folder of the project, or unset it"
            )
        return root
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / PIPELINE_FILE).is_file()), None)


def project_root() -> Path:
    """Return the project's folder, as :func:`find_project` finds it.

    Raises:
        ProjectError: there is none.
    """
    if (root := find_project()) is None:
        raise ProjectError(
            "working directory",
            f"{Path.cwd()} is not inside a project (no {PIPELINE_FILE} upward of it), and this command needs one",
            f"clone it (git clone URL) and cd into it, or set {VARIABLE}",
        )
    return root
