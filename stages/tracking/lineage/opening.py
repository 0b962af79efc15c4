"""Open the content of a project, or of a cache folder, with the remote that is configured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.runtime.plain import one_line
from stages.tracking.lineage.cache import ContentStore
from stages.tracking.lineage.cache_folder import CacheRepo, is_cache, most_bytes, prune
from stages.tracking.lineage.git import FIRST_COMMIT
from stages.tracking.lineage.remote import FROM_ENVIRONMENT, REMOTE_VARIABLE
from stages.tracking.lineage.uri import TrackingError, display_uri, quiet


@contextmanager
def open_content(root: Path) -> Iterator[ContentStore]:
    """Open the objects of the DVC project at ``root``, or of a cache folder.

    ``VIDBRIDGE_DVC_REMOTE`` (a remote's name or its URL) replaces the default remote. Outside a
    project a name refers to the user's own DVC configuration (``dvc remote add --global``).

    Raises:
        TrackingError: ``root`` is neither, or a configuration of DVC cannot be read.
    """
    quiet()
    from dvc.config import ConfigError
    from dvc.exceptions import NotDvcRepoError
    from dvc.scm import SCMError

    changes = _configured(os.environ.get(REMOTE_VARIABLE, "").strip())
    try:
        if is_cache(root):
            with _cached(root, changes) as content:
                yield content
            return
        from dvc.repo import Repo

        with Repo(str(root), config=changes) as repo:
            yield ContentStore(repo, root)
    except SCMError as error:
        raise TrackingError(str(root), one_line(error), f"type: {FIRST_COMMIT}") from error
    except NotDvcRepoError as error:
        raise TrackingError(
            str(root), str(error), "set VIDBRIDGE_PROJECT to a clone of the project, or run dvc init"
        ) from error
    except ConfigError as error:
        if changes and FROM_ENVIRONMENT in changes.get("remote", {}) and FROM_ENVIRONMENT in str(error):
            remote_name = display_uri(os.environ[REMOTE_VARIABLE])
            raise TrackingError(
                REMOTE_VARIABLE,
                f"{remote_name}: not a URL of a DVC remote ({str(error).partition(' for dictionary value')[0]})",
                "set one such as s3://BUCKET/PATH, ssh://HOST/PATH or /absolute/path",
            ) from error
        what = "DVC's configuration" if is_cache(root) else str(root)
        raise TrackingError(
            what, str(error), "correct it, or set VIDBRIDGE_PROJECT to a clone of the project"
        ) from error


@contextmanager
def _cached(root: Path, changes: dict[str, Any] | None) -> Iterator[ContentStore]:
    most = most_bytes()
    content = ContentStore(CacheRepo(root, changes), root)
    yield content
    if content.fetched:
        prune(root, most)


def _configured(remote: str) -> dict[str, Any] | None:
    if not remote:
        return None
    if "/" in remote:
        return {"remote": {FROM_ENVIRONMENT: {"url": remote}}, "core": {"remote": FROM_ENVIRONMENT}}
    return {"core": {"remote": remote}}
