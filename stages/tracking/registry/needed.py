"""Find the content that the work tree, every git ref and the registry's versions need. By hash
only; nothing is changed here.

``dvc gc`` knows only revisions of this clone: no alias, no ledger, no unfetched branch of the
origin, no age. So needs are determined here, from each ref's ``dvc.lock`` and ``.dvc`` files; lists
of folders are read with :mod:`stages.tracking.lineage.listing`, from the cache or straight from the
remote.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.params import Params
from stages.runtime import paths
from stages.runtime.bounded_yaml import YamlError, parse_yaml
from stages.runtime.plain import one_line, redacted
from stages.tracking.lineage.cache import ContentStore
from stages.tracking.lineage.commits import blob_at
from stages.tracking.lineage.git import git, head, is_repository
from stages.tracking.lineage.listing import MAX_BYTES, is_hash, parse_list
from stages.tracking.lineage.lockfile import parse_lock
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.ledger import ENTRY, champions, read_ledger
from stages.tracking.registry.versions import JUDGING, Version, all_versions, registered_models
from stages.tracking.runs.run import TAG

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_SOURCE = re.compile(r"dvc:///?([0-9a-f]{32}\.dir)(?:/.*)?")
#: Folders of the state that hold no clone.
_NO_CLONES = frozenset(
    ("loaded", "servable", "mlflow-artifacts", "scratch", "frames", "examined", "prefect", "remote", "unsent", "cache")
)
_CLONE_LEVELS = 4
#: A version that is being judged is left alone for this long: judging may first run a whole
#: evaluation of the champion.
_JUDGING_MS = 3_600_000


@dataclass(frozen=True)
class Need:
    """Content that has to stay. ``why``: the reason in the table, shared by many; ``who``: the name
    of the owner.

    ``only``: only that file of these folders; None: all their files.
    """

    why: str
    who: str
    oids: frozenset[str]
    only: str | None = None


WORK_TREE = "present in a work tree (dvc.lock, .dvc files)"
REFS = "in a branch or tag"
ALIASES = "champion, candidate or another alias"
STACK = "an earlier champion, which rollback goes back to"
FOREIGN = "a version of another registered model"
JUDGED = "put to the gate within the last hour"
YOUNG = "younger than --keep-days"
MANIFESTS = "what a version was trained on (its list of clips, for data remove)"
REGISTERED = "a registered version, and the only copy (--versions frees it)"


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
                    where,
                    f"cannot be read, so its needs are unknown ({error})",
                    "fix it, or delete that branch or tag",
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


def own_models(params: Params) -> frozenset[str]:
    """Names of a project's registered models."""
    gate = params.gate
    return frozenset(filter(None, (gate.registered_model, f"{gate.registered_model}-ablation", gate.production)))


@dataclass(frozen=True)
class Standing:
    """A version that one of our stages produced, and why it must keep its weights; None: it is not
    needed."""

    version: Version
    why: str | None


@dataclass(frozen=True)
class Registry:
    """Every version in the store that names content, and the content that has to stay."""

    versions: tuple[Standing, ...]
    needs: tuple[Need, ...]


def registry(client: MlflowClient, own: frozenset[str], refs: frozenset[str], young_ms: float) -> Registry:
    """Read every registered model, of every project.

    Args:
        own: names of this project's models, whose versions may be freed.
        refs: hashes that work trees, branches and tags need.
        young_ms: versions created later than this (milliseconds since the epoch) stay.

    Raises:
        TrackingError: a ledger or a tag cannot be read.
    """
    models = {name: all_versions(client, name) for name in registered_models(client)}
    stacks: dict[tuple[str, int], str] = {}
    for name, versions in models.items():
        # Everything of other projects is kept, so their ledgers and tags are irrelevant, readable
        # or not.
        if name.removesuffix(".gate") in own and any(ENTRY in version.tags for version in versions):
            for number in champions(read_ledger(client, name.removesuffix(".gate"), name)):
                stacks[name.removesuffix(".gate"), number] = STACK
    standing, needs = [], []
    for name, versions in models.items():
        for version in versions:
            oids = oids_of(version)
            if not oids or ENTRY in version.tags:
                continue
            # A rollback never returns to a version that learned from a removed video.
            earlier = stacks.get((name, version.number)) if name in own and version.removed_videos is None else None
            why = (
                ALIASES
                if version.aliases
                else earlier
                or (REFS if version.out in refs else None)
                or (FOREIGN if name not in own else None)
                or (JUDGED if _is_judged(version) else None)
                or (YOUNG if version.created_ms > young_ms else None)
            )
            who = f"{name} version {version.number}"
            if why is not None:
                needs.append(Need(why, who, oids))
            standing.append(Standing(version, why))
            if clips := _data_of(version).get(paths.CLIPS.as_posix()):
                needs.append(Need(MANIFESTS, who, frozenset([clips]), only=paths.MANIFEST_FILE))
    return Registry(tuple(standing), tuple(needs))


def _is_judged(version: Version) -> bool:
    judged_ms = version.tags.get(JUDGING, "")
    return judged_ms.isascii() and judged_ms.isdigit() and abs(time.time() * 1000 - int(judged_ms[:20])) < _JUDGING_MS


def oids_of(version: Version) -> frozenset[str]:
    """Folders that hold a version's weights and its scores by sample; empty if its source names no
    content."""
    match = _SOURCE.fullmatch(version.source)
    if match is None:
        return frozenset()
    folders = {match[1]}
    for tag, text in version.tags.items():
        if tag.startswith(f"{TAG}samples"):
            folders |= {oid for oid in _table(text).values() if is_hash(oid)}
    return frozenset(folders)


def _data_of(version: Version) -> dict[str, str]:
    return {path: oid for path, oid in _table(version.tags.get(f"{TAG}data", "{}")).items() if is_hash(oid)}


def named_oids(version: Version) -> frozenset[str]:
    """All content that a version names: weights, scores, data and parents."""
    parents = {
        str(producer.get("out"))
        for producer in _table(version.tags.get(f"{TAG}parents", "{}")).values()
        if isinstance(producer, dict)
    }
    return frozenset(oid for oid in {*oids_of(version), *_data_of(version).values(), *parents} if is_hash(oid))


def _table(text: str) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


class Lists:
    """Lists of folders by hash, read from the cache, else from the remote; a list from the remote
    is not written into the cache."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content
        self._known: dict[str, dict[str, str] | None] = {}

    def files(self, oid: str) -> dict[str, str] | None:
        """Path to hash; None: neither cache nor remote has the list, so the folder cannot be
        assembled any more.

        Raises:
            TrackingError: the remote does not answer, or the list is damaged.
        """
        if oid not in self._known:
            text = self._bytes(oid)
            self._known[oid] = None if text is None else parse_list(text, oid, "")
        return self._known[oid]

    def expand(self, need: Need) -> Iterator[str]:
        """Iterate over every object that a need keeps."""
        for oid in need.oids:
            yield oid
            if oid.endswith(".dir") and (files := self.files(oid)) is not None:
                yield from (
                    files.values() if need.only is None else [md5 for path, md5 in files.items() if path == need.only]
                )

    def _bytes(self, oid: str) -> bytes | None:
        here = Path(self._content.cache.oid_to_path(oid))
        try:
            text = here.read_bytes()
        except FileNotFoundError:
            return self._remote_bytes(oid)
        return text if _is(text, oid) else self._remote_bytes(oid)

    def _remote_bytes(self, oid: str) -> bytes | None:
        remote = self._content.remote()
        if remote is None:
            return None
        path = remote.oid_to_path(oid)
        try:
            size = remote.fs.size(path)
            if size is not None and size > MAX_BYTES:
                raise TrackingError(
                    "DVC remote", f"{path}: has {size:,} bytes, more than any list of ours", "remove it there"
                )
            text = bytes(remote.fs.cat_file(path))
        except FileNotFoundError:
            return None
        except Exception as error:  # the type depends on the remote's library
            if isinstance(error, TrackingError):
                raise
            raise TrackingError(
                "DVC remote",
                f"{redacted(str(error))}; what {oid} holds is unknown, so nothing is freed",
                "try again when it answers",
            ) from error
        return text if _is(text, oid) else None


def _is(text: bytes, oid: str) -> bool:
    return hashlib.md5(text, usedforsecurity=False).hexdigest() == oid.removesuffix(".dir")
