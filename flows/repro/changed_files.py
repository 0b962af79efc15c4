"""Files of a dependency that changed since the commit that holds its entry in ``dvc.lock``: DVC
keeps one hash for a folder.

For display only. Names nothing where git cannot tell (no repository, a lock that no commit holds,
code that was not committed when it ran).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from flows.repro.package_code import FOLDER as CODE
from flows.repro.package_code import parse
from stages.runtime import paths
from stages.tracking.lineage.git import git
from stages.tracking.lineage.uri import TrackingError

_SHOWN = 3


def changed_files(root: Path, dep: str, was: str) -> str:
    """List the changed files under the folder ``dep``, or the changed code folders that a file of
    :mod:`flows.repro.package_code` lists; "" if none can be named.

    ``was``: the hash of ``dep`` in ``dvc.lock``.
    """
    path = PurePosixPath(dep)
    if not (root / dep).is_dir() and path.parent != CODE:
        return ""
    try:
        commit = _commit_with(root, was)
        if commit is None:
            return ""
        if path.parent == CODE:
            before, now = parse(git(root, "show", f"{commit}:./{dep}")), parse((root / dep).read_text(encoding="utf-8"))
            names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        else:
            names = sorted(
                {
                    PurePosixPath(name).relative_to(path).as_posix()
                    for arguments in (
                        ("diff", "--name-only", "--relative", "--no-renames", "-z", commit, "--", dep),
                        ("ls-files", "--others", "--exclude-standard", "-z", "--", dep),
                    )
                    for name in git(root, *arguments).split("\0")
                    if name
                }
            )
    except (TrackingError, OSError):  # it is an explanation: the plan stands without it
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _commit_with(root: Path, hash_of_dep: str) -> str | None:
    """Newest commit on any branch whose ``dvc.lock`` holds this hash; ``runs/<id>`` holds what a
    run has not committed.
    """
    for commit in git(root, "log", "--all", "--format=%H", f"-S{hash_of_dep}", "--", paths.LOCK_FILE).split():
        if hash_of_dep in git(root, "show", f"{commit}:./{paths.LOCK_FILE}"):
            return commit
    return None
