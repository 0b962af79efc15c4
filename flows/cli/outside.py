"""Commands that only read the registry: from inside a project, and from URLs alone in any other
folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from flows.errors import UsageError
from flows.processes.environment import project_or_none

if TYPE_CHECKING:
    from stages.tracking.session import Session

#: Ways from "no project" to an answer.
WAYS = (
    "cd into a clone (git clone URL), set VIDBRIDGE_PROJECT to one, or read the registry without one:"
    " MLFLOW_TRACKING_URI names its server and VIDBRIDGE_DVC_REMOTE the URL of the DVC remote"
)


def reader() -> Session:
    """Open the project; outside of one the cache folder, with the registry that the environment
    names.

    Raises:
        ProjectError: ``VIDBRIDGE_PROJECT`` names a folder that is not a project.
        UsageError: neither; or the registry is a file that is not there, or that is named from a
            project's folder.
        TrackingError: the cache folder cannot be used.
    """
    root = project_or_none()
    from stages.tracking.session import Session

    if root is not None:
        return Session(root)
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        raise UsageError(
            "working directory", f"{Path.cwd()} is not inside a project (no dvc.yaml upward of it)", f"{WAYS}"
        )
    from stages.runtime.paths import STATE
    from stages.tracking.lineage.cache_folder import cache_folder
    from stages.tracking.lineage.uri import display_uri, sqlite_path

    database = sqlite_path(uri)
    if database is not None and not database.is_absolute():
        raise UsageError(
            "MLFLOW_TRACKING_URI",
            f"{display_uri(uri)}: its path counts from the folder of a project, and {Path.cwd()} is not inside one",
            "write sqlite:////absolute/path.db",
        )
    if database is not None and not database.is_file():
        # MLflow would make an empty one there, and find nothing in it.
        raise UsageError(
            "MLFLOW_TRACKING_URI", f"{display_uri(uri)}: no such file", "correct the path, or name the server"
        )
    root = cache_folder()
    # A project's own lie in its folder; here the working folder may be read-only, and is nobody's
    # place for them.
    os.environ.setdefault("VIDBRIDGE_JUDGE_CACHE", str(root / STATE / "judge"))
    os.environ.setdefault("VIDBRIDGE_FRAME_CACHE", str(root / STATE / "frames"))
    return Session(root)
