"""Needs of projects: their work trees, branches and tags, from ``dvc.lock`` and ``.dvc`` files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from flows.housekeeping.needs import REFS, WORK_TREE, Need
from stages.runtime import paths
from stages.runtime.bounded_yaml import YamlError, parse_yaml
from stages.runtime.plain import one_line
from stages.tracking.lineage.commits import blob_at
from stages.tracking.lineage.git import git, head, is_repository
from stages.tracking.lineage.listing import is_hash
from stages.tracking.lineage.lockfile import parse_lock
from stages.tracking.lineage.uri import TrackingError

#: Folders of the state that hold no clone.
_NO_CLONES = frozenset(
    (
        "loaded",
        "servable",
        "mlflow-artifacts",
        "scratch",
        "frames",
        "sources",
        "examined",
        "prefect",
        "remote",
        "unsent",
        "cache",
    )
)
_CLONE_LEVELS = 4


def lock_oids(text: bytes, name: str) -> frozenset[str]:
    """Hashes of the outs in a ``dvc.lock``.

    Raises:
        TrackingError: it cannot be parsed, so its needs are unknown.
    """
    return frozenset(oid for record in parse_lock(text, name).values() for oid in record.outs.values() if is_hash(oid))


def tracked_oids(text: bytes, name: str) -> frozenset[str]:
    """Hashes that a ``.dvc`` file (``dvc add``) tracks.

    Raises:
        TrackingError: it is not a ``.dvc`` file.
    """
    try:
        table = parse_yaml(text.decode("utf-8"), name) or {}
        hashes = {str(out.get("md5") or "") for out in table.get("outs") or ()}
    except (YamlError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise TrackingError(name, f"not a .dvc file ({error})", "fix it, or delete it") from error
    return frozenset(oid for oid in hashes if is_hash(oid))


def project_needs(root: Path) -> list[Need]:
    """Collect the needs of a project: its work tree, the other work trees of its repository, and
    every ref, those of its remotes included.

    Raises:
        TrackingError: a lock or a ``.dvc`` file cannot be read.
    """
    needs = [_work_tree(root)]
    if not is_repository(root) or head(root) is None:
        return needs
    for line in git(root, "worktree", "list", "--porcelain").splitlines():
        if (
            line.startswith("worktree ")
            and (other := _inside(root, Path(line.removeprefix("worktree ")))) != root.resolve()
        ):
            needs.append(_work_tree(other))
    names = git(root, "for-each-ref", "--format=%(refname)").split()
    blobs: dict[str, frozenset[str]] = {}
    return needs + [_at(root, name, blobs) for name in ("HEAD", *names)]


def origin_needs(root: Path) -> list[Need]:
    """Collect the needs of branches and tags of the repository's remotes, in their present state.

    Raises:
        TrackingError: a remote does not answer, or has a branch that was not fetched, so its needs
            are unknown.
    """
    needs: list[Need] = []
    blobs: dict[str, frozenset[str]] = {}
    for remote in git(root, "remote").split() if is_repository(root) else ():
        for line in git(root, "ls-remote", "--heads", "--tags", remote).splitlines():
            commit, _, name = line.partition("\t")
            try:
                git(root, "cat-file", "-e", f"{commit}^{{tree}}")
            except TrackingError as error:
                raise TrackingError(
                    f"git remote {remote}",
                    f"{one_line(name)} was not fetched, and may need what would be freed",
                    f"do: git fetch {remote} '+refs/heads/*:refs/remotes/{remote}/*' --tags",
                ) from error
            needs.append(_at(root, commit, blobs, f"{remote} {name}"))
    return needs


def _inside(root: Path, tree: Path) -> Path:
    """Path of the project's folder in another work tree of its repository."""
    return (tree / git(root, "rev-parse", "--show-prefix")).resolve()


def _work_tree(root: Path) -> Need:
    oids: set[str] = set()
    for path in (root / paths.LOCK_FILE, root / paths.KEPT_LOCK):
        if path.is_file():
            oids |= lock_oids(path.read_bytes(), str(path))
    for path in _dvc_files(root):
        oids |= tracked_oids(path.read_bytes(), str(path))
    return Need(WORK_TREE, str(root), frozenset(oids))


def _dvc_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if name not in (".git", ".dvc", ".venv", str(paths.STATE), "models", "node_modules")
        ]
        yield from (Path(folder, name) for name in files if name.endswith(".dvc") and name != ".dvc")


def _at(root: Path, commit: str, blobs: dict[str, frozenset[str]], name: str | None = None) -> Need:
    """Needs of a commit. ``blobs``: files that were read before, by their hash."""
    oids: set[str] = set()
    for line in git(root, "ls-tree", "-r", "-z", "--full-tree", f"{commit}^{{tree}}").split("\0"):
        about, _, path = line.partition("\t")
        if not path.endswith(".dvc") and path.rpartition("/")[2] != paths.LOCK_FILE:
            continue
        blob = about.split()[2]
        if blob not in blobs:
            read = tracked_oids if path.endswith(".dvc") else lock_oids
            where = f"{name or commit}:{path}"
            try:
                blobs[blob] = read(_blob(root, blob), where)
            except TrackingError as error:
                raise TrackingError(
                    where, f"cannot be read, so its needs are unknown ({error})", "fix it, or delete that branch or tag"
                ) from error
        oids |= blobs[blob]
    return Need(REFS, name or commit, frozenset(oids))


def _blob(root: Path, blob: str) -> bytes:
    return (git(root, "cat-file", "blob", blob) + "\n").encode()


def clips_of_refs(root: Path) -> dict[str, str]:
    """Hash of the clips behind the results of each branch or tag; refs without results are missing.

    Raises:
        TrackingError: a lock cannot be read.
    """
    if not is_repository(root) or head(root) is None:
        return {}
    clips = {}
    path = git(root, "rev-parse", "--show-prefix") + paths.LOCK_FILE
    for name in git(root, "for-each-ref", "--format=%(refname)").split():
        blob = blob_at(root, f"{name}^{{tree}}", path)
        records = parse_lock(_blob(root, blob), f"{name}:{path}").values() if blob else ()
        for oid in (oid for record in records for out, oid in record.outs.items() if out == paths.CLIPS.as_posix()):
            clips[name] = oid
    return clips


def history_oids(root: Path) -> frozenset[str]:
    """Hashes of every out in any ``dvc.lock`` or ``.dvc`` file of the repository's whole history,
    reflogs included: the project's own content.

    Unreadable files contribute nothing.
    """
    if not is_repository(root) or head(root) is None:
        return frozenset()
    hashes: set[str] = set()
    listed = git(
        root, "rev-list", "--all", "--reflog", "--objects", "--", f":(glob)**/{paths.LOCK_FILE}", ":(glob)**/*.dvc"
    )
    for line in listed.splitlines():
        blob, _, path = line.partition(" ")
        read = (
            tracked_oids if path.endswith(".dvc") else lock_oids if path.rpartition("/")[2] == paths.LOCK_FILE else None
        )
        if read is None:
            continue
        try:
            hashes |= read(_blob(root, blob), path)
        except TrackingError:
            continue
    return frozenset(hashes)


def clones(root: Path) -> list[Path]:
    """List the projects below the state of ``root`` that work with its cache: clones of scheduled
    runs, and of an ablation's seeds."""
    projects = []
    base = root / paths.STATE
    for folder, folders, files in os.walk(base):
        depth = len(Path(folder).relative_to(base).parts)
        folders[:] = [
            name for name in sorted(folders) if not (depth == 0 and name in _NO_CLONES) and depth < _CLONE_LEVELS
        ]
        if paths.PIPELINE_FILE in files:
            projects.append(Path(folder))
            folders[:] = []
    return projects
