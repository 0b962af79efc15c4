"""Content that runs leave in a project's state: scratch, assembled models, journals, frames,
clones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.processes.environment import scratch, state
from stages.ingest.examine import journal_file, kept_at
from stages.params import Params
from stages.runtime import paths as layout
from stages.runtime.sources.store import open_store
from stages.tracking.lineage.git import git
from stages.tracking.lineage.uri import TrackingError

#: A training writes into its scratch folder far more often; so long a pause is none, whatever
#: `--keep-days` says.
QUIET_S = 3600.0
#: A half-made folder of this age has no maker any more.
ABANDONED_S = 86400.0


@dataclass(frozen=True)
class Leftover:
    """A file or folder and the reason why it stays; None: nothing needs it."""

    kind: str
    path: Path
    why: str | None


def leftovers(
    root: Path, params: Params, projects: Sequence[Path], pinned: frozenset[str], removed: frozenset[str], keep_s: float
) -> Iterator[Leftover]:
    """Yield everything of the kind in ``projects`` (``root`` and the clones below its state).

    Args:
        pinned: hashes of folders (``….dir``) whose models stay put together.
        removed: SHA-256 of videos that were removed on request.
        keep_s: what was used within so many seconds stays.
    """
    for project in projects:
        yield from _scratch(root, project, keep_s)
        for kind in ("loaded", "servable"):
            yield from _put_together(project, kind, pinned, keep_s)
        yield from _aged("serving", state(project).glob("serving-*"), keep_s)
        yield from _journals(project, params, removed, keep_s)
        yield from _fetched(project, removed, keep_s)
        yield from _aged("frames", (project / layout.FRAMES).glob("*.npy"), keep_s)
    for clone in projects:
        if clone != root:
            yield Leftover("clones", clone, _needed_clone(root, clone, keep_s))


def newest(path: Path) -> float:
    """Time of the last write below ``path``, seconds since the epoch; 0 if it has vanished."""
    found = 0.0
    for folder, _, files in os.walk(path):
        for entry in (folder, *(f"{folder}{os.sep}{name}" for name in files)):
            try:
                found = max(found, os.lstat(entry).st_mtime)
            except FileNotFoundError:
                continue
    if not found:
        try:
            found = path.lstat().st_mtime
        except FileNotFoundError:
            return 0.0
    return found


def _young(at: float, keep_s: float) -> str | None:
    days = keep_s / 86400
    return f"used within {days:g} days (--keep-days)" if time.time() - at < keep_s else None


def _scratch(root: Path, project: Path, keep_s: float) -> Iterator[Leftover]:
    folder = scratch(root) if project == root else project / layout.SCRATCH
    shared = not folder.resolve().is_relative_to(root.resolve())
    for path in sorted(folder.glob("*/*")):
        if not path.is_dir() or path.is_symlink():
            continue
        quiet = max(keep_s, QUIET_S)
        why = _young(newest(path), keep_s) or (
            "a training may be writing it" if time.time() - newest(path) < quiet else None
        )
        if shared:
            why = "outside of the project: another one may resume from it (vidbridge scratch clean)"
        yield Leftover("scratch", path, why)


def _put_together(project: Path, kind: str, pinned: frozenset[str], keep_s: float) -> Iterator[Leftover]:
    for path in sorted((state(project) / kind).glob("*/*")):
        if path.name.startswith("@"):
            continue  # beside a folder: its list, and when it was used
        if path.name.startswith(".part-"):
            if time.time() - newest(path) > ABANDONED_S:
                yield Leftover(kind, path, None)
            continue
        used = [stamp.lstat().st_mtime for stamp in path.parent.glob("@used-*") if stamp.name == f"@used-{path.name}"]
        why = "of a version that has an alias" if f"{path.parent.name}.dir" in pinned else None
        yield Leftover(kind, path, why or _young(max([path.lstat().st_mtime, *used]), keep_s))


def _aged(kind: str, paths: Iterator[Path], keep_s: float) -> Iterator[Leftover]:
    for path in sorted(paths):
        yield Leftover(kind, path, _young(newest(path), keep_s))


def _journals(project: Path, params: Params, removed: frozenset[str], keep_s: float) -> Iterator[Leftover]:
    present = journal_file(params.ingest.below(project)).name
    for journal in sorted((project / layout.EXAMINED).glob("*.jsonl")):
        files = journal.with_suffix("")
        for sha256 in sorted(removed):
            if (copy := files / "normalised" / f"{sha256[:32]}.mp4").is_file():
                yield Leftover("examined", copy, None)
        manifest = kept_at(journal) / layout.MANIFEST_FILE
        if manifest.is_file() and any(sha256 in manifest.read_text("utf-8") for sha256 in removed):
            yield Leftover("examined", manifest.parent, None)
        why = "what the next ingest goes on from" if journal.name == present else _young(newest(journal), keep_s)
        yield Leftover("examined", journal, why)
        if files.is_dir():
            yield Leftover("examined", files, why)


def _fetched(project: Path, removed: frozenset[str], keep_s: float) -> Iterator[Leftover]:
    """Files of remote sources and of tars. A cache outside of the project keeps its own bound; what
    was removed on request goes from there as well.
    """
    folder = open_store(project).folder
    own = folder.resolve().is_relative_to(project.resolve())
    for path in sorted((folder / "objects").glob("*/*")):
        if path.name.partition(".")[0] in removed:
            yield Leftover("fetched", path, None)
        elif own:
            yield Leftover("fetched", path, _young(newest(path), keep_s))


def _needed_clone(root: Path, clone: Path, keep_s: float) -> str | None:
    """Reason why a clone stays. Its content can be restored from the repository and DVC's cache,
    except for branches that only it has.
    """
    top = next((folder for folder in (clone, *clone.parents) if (folder / ".git").exists()), None)
    if top is None or not top.resolve().is_relative_to(state(root).resolve()):
        return "no repository, so whose it is cannot be told"
    used = [
        path.lstat().st_mtime
        for path in (top / ".git" / "HEAD", top / ".git" / "index", clone / layout.LOCK_FILE)
        if path.exists()
    ]
    if why := _young(max(used, default=time.time()), keep_s):
        return why
    try:
        for line in git(top, "for-each-ref", "--format=%(objectname) %(refname:short)", "refs/heads").splitlines():
            commit, _, branch = line.partition(" ")
            if not git(root, "for-each-ref", "--contains", commit):
                return f"its branch {branch} is nowhere else"
    except TrackingError:
        return "it has commits that the repository does not have"
    return None
