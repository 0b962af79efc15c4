"""The scheduled run's own clone of the repository: it never touches a person's work tree, and
losing it costs nothing.

Code comes from the branch, results from DVC's cache and remote, which the clone shares with the
project it was made from; one of a repository elsewhere shares a cache with the worker's other
clones. Each deployment has a folder of its own, and its lock lies beside that: it is held before
git touches anything, and before there is a clone (:func:`folder_of`, :func:`held`).

``dvc.lock`` is the one file with two possible truths (the branch's, and that of earlier scheduled
runs, which stand on branches ``runs/*``): the one that leaves the least to do is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.content.names import has_file
from flows.errors import DvcError, FlowError, UnsafeContent, UsageError
from flows.params_file import recipes
from flows.processes.environment import state
from flows.processes.locks import hold
from flows.repro.plan import make_plan
from flows.repro.steps import Plan
from stages.runtime import paths
from stages.runtime.bounded_yaml import MergeConflict
from stages.runtime.plain import one_line
from stages.runtime.project import project_root
from stages.tracking.lineage.git import git

_RUNS = "refs/remotes/origin/runs/"
#: Earlier runs whose lock is tried; older ones have less in common with the branch.
_LOCKS_TRIED = 3
_OWN = "HEAD"


@dataclass(frozen=True)
class Origin:
    """The source of a deployment's runs. ``directory``: the project's folder inside the repository,
    "" for its top. ``home``: the worker's own project if that is cloned; None for a repository
    elsewhere.
    """

    repository: str
    branch: str
    directory: str
    home: Path | None = None


@dataclass(frozen=True)
class Clone:
    #: The project's folder in it.
    root: Path
    commit: str
    #: True if other machines, or the project itself, can read the clone's DVC remote.
    shared_remote: bool


def project_origin(home: Path, branch: str) -> Origin:
    """Origin of the project ``home``, which is the top of a repository or a folder in it.

    Raises:
        FlowError: it is in none.
    """
    top = git(home, "rev-parse", "--show-toplevel")
    return Origin(top, branch, git(home, "rev-parse", "--show-prefix").rstrip("/"), home)


def work_folder() -> Path:
    """Folder of a worker's clones: ``VIDBRIDGE_WORK``, else in its project, else in its user's
    state folder.

    Raises:
        UsageError: none of these can be.
    """
    if named := os.environ.get("VIDBRIDGE_WORK"):
        folder = Path(named).expanduser()
        if not folder.is_absolute():
            raise UsageError(
                "VIDBRIDGE_WORK", f"{named!r} is relative, and a worker starts runs elsewhere", "name an absolute path"
            )
        return folder
    if os.environ.get("VIDBRIDGE_PROJECT"):
        return state(project_root()) / "scheduled"
    try:
        home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        (home / "vidbridge").mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise UsageError(
            "VIDBRIDGE_WORK", f"not set, and this user has no home that can be written ({error})", "set it"
        ) from error
    return home / "vidbridge"


def folder_of(work: Path, origin: Origin, source: str | None, deployment: str, deployment_id: str) -> Path:
    """Folder of a clone, unique for a deployment and for what it runs, so that no two deployments
    share one.
    """
    parts = (deployment_id, origin.repository, origin.branch, origin.directory, source or "")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", deployment)[:40].strip(".-") or "run"
    return work / f"{name}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:12]}"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the clone for this block: from before git touches or creates it until everything of the
    run is pushed.

    Raises:
        FlowError: another run holds it.
    """
    with hold(_beside(folder, ".lock"), "run", f"is running this deployment already (in {folder})"):
        yield


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(folder.name + ending)


def make(origin: Origin, folder: Path) -> Path:
    """Clone if there is no clone yet; returns the folder of the project. Call it while
    :func:`held`, like :func:`refresh`.

    Raises:
        FlowError: the repository or the branch cannot be read.
    """
    if not (folder / ".git").is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = _beside(folder, paths.UNFINISHED)  # a clone that was killed half-way is none
        shutil.rmtree(partial, ignore_errors=True)
        git(folder.parent, "clone", "--quiet", "--branch", origin.branch, "--", origin.repository, partial.name)
        partial.replace(folder)
    note = asdict(origin) | {"home": str(origin.home or ""), "used": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    _beside(folder, ".json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    return folder / origin.directory


def leftovers(work: Path) -> list[Path]:
    """Clones below ``work`` that no deployment of this version uses: they are named by the hash of
    a branch, with no note beside.
    """
    return [
        folder
        for folder in sorted(work.glob("*"))
        if re.fullmatch("[0-9a-f]{12}", folder.name)
        and (folder / ".git").is_dir()
        and not _beside(folder, ".json").is_file()
    ]


def refresh(origin: Origin, folder: Path) -> Clone:
    """Move the clone in ``folder`` to the newest commit of the branch.

    Leftovers of an earlier run (edited parameters, a lock that was not committed) are dropped
    from the work tree; outputs and the state from which training resumes are ignored by git, so
    they stay.

    Raises:
        FlowError: the repository cannot be read, or has no such branch, or no project in that
            folder.
    """
    git(folder, "remote", "set-url", "origin", origin.repository)
    git(folder, "fetch", "--quiet", "--prune", "origin", "+refs/heads/*:refs/remotes/origin/*")
    # A lock of git that a killed run left behind would stop every later one; nobody else works in
    # this clone.
    (folder / ".git" / "index.lock").unlink(missing_ok=True)
    tip = f"refs/remotes/origin/{origin.branch}"
    if not git(folder, "for-each-ref", "--format=%(refname)", tip):
        raise FlowError(
            "branch", f"{origin.branch!r} is not in {origin.repository} any more", "push it, or deploy another one"
        )
    git(folder, "checkout", "--quiet", "--force", "--detach", tip)
    root = folder / origin.directory
    if not (root / paths.PIPELINE_FILE).is_file():
        where = f"folder {origin.directory!r}" if origin.directory else "the top"
        raise FlowError(
            "directory",
            f"{where} of {origin.repository}, branch {origin.branch}, holds no dvc.yaml",
            "deploy again with --directory SUB",
        )
    shared = share_storage(origin.home, root, folder.parent / "cache")
    return Clone(root, git(folder, "rev-parse", "HEAD"), shared)


def share_storage(home: Path | None, root: Path, cache: Path | None = None) -> bool:
    """Point the clone at the cache and the remotes of the project ``home`` that it was made from;
    without one, at ``cache``, unless DVC's configuration names another. Returns False if the remote
    stays this clone's own.

    A path in ``.dvc/config`` counts from that file, so in a clone it would name another folder;
    ``.dvc/config.local`` (keys, the place of the cache) is in no clone.

    Raises:
        FlowError: DVC cannot read one of the configurations.
    """
    from dvc.config import Config, ConfigError

    target = root / ".dvc"
    if not target.is_dir():
        raise FlowError(str(root), "no .dvc", "commit what `dvc init` made")
    try:
        # Only its owner's: keys may stand in it.
        os.close(os.open(target / "config.local", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        committed = Config(str(target))
        config = Config(str(home / ".dvc")) if home is not None else None
        with committed.edit("local") as local:
            if config is not None and home is not None:
                for section, table in config.load_one("local").items():
                    local[section] = _plain(table)
                local["cache"]["dir"] = str(config["cache"].get("dir") or home / ".dvc" / "cache")
                for name, remote in committed.load_one("repo")["remote"].items():
                    if _is_relative(remote.get("url")):
                        target_path = home / ".dvc" / os.path.relpath(remote["url"], target)
                        local["remote"].setdefault(name, {}).setdefault("url", str(target_path.resolve()))
            elif cache is not None and not committed["cache"].get("dir"):
                local["cache"]["dir"] = str(cache)
        merged = Config(str(target))
    except ConfigError as error:
        raise FlowError(str(target), str(error), "correct it: dvc config --list") from error
    name = merged["core"].get("remote")
    url = merged["remote"].get(name, {}).get("url") if name else None
    if os.environ.get("VIDBRIDGE_DVC_REMOTE"):
        return True
    return url is not None and not _is_relative(url)


def _is_relative(url: object) -> bool:
    """Return whether DVC read a path that counts from the file it stands in."""
    from dvc.config_schema import RelPath

    return isinstance(url, RelPath)


def _plain(value: Any) -> Any:
    """Copy of a configuration's table in which paths that counted from its file are absolute, to be
    written into another file.
    """
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if _is_relative(value) else value


def configure(root: Path, recipe: str | None, source: str | None) -> None:
    """Set the parameters of this run: a recipe instead of the branch's own, and the folder of
    videos. The edit is committed with the lock.

    Raises:
        UsageError: no such recipe, or ``source`` is not a folder with annotations.
        ParamsError: the recipe breaks a rule.
    """
    if recipe:
        recipes.use(root, recipe, force=True)
    if not source:
        return
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    table = yaml.load((root / paths.PARAMS_FILE).read_text(encoding="utf-8"))
    folder = Path(source).expanduser()
    plain = table["ingest"]["format"] == "jsonl"
    name = table["ingest"]["annotations"] or (paths.ANNOTATIONS_FILE if plain else None)
    if not folder.is_absolute() or not (has_file(folder, name) if name else folder.exists()):
        raise UsageError(
            "source",
            f"{source!r} is not an absolute path of a folder with {name or 'annotations'}",
            "name the folder of your videos",
        )
    table["ingest"]["source"] = str(folder)
    with (root / paths.PARAMS_FILE).open("w", encoding="utf-8") as file:
        yaml.dump(table, file)


def choose_lock(root: Path, target: str) -> Plan:
    """Put the ``dvc.lock`` in place that leaves the least to run, and return the plan with it, with
    a note on each lock that cannot be used.

    Raises:
        MergeConflict, UnsafeContent: in the branch's own lock, which is a person's to settle. Those
            of other runs are passed over.
    """
    best: tuple[tuple[int, int], bytes | None, Plan] | None = None
    notes: list[str] = []
    seen: set[bytes | None] = set()
    for reference, text in _locks(root):
        if text in seen:
            continue
        seen.add(text)
        _write_lock(root, text)
        try:
            plan = make_plan(root, target)
        except (DvcError, MergeConflict, UnsafeContent) as error:
            # One of another version of the pipeline is not this one's lock, not even on the branch
            # itself.
            if text is None or (reference == _OWN and not isinstance(error, DvcError)):
                raise
            notes.append(
                f"{paths.LOCK_FILE} of {reference.removeprefix('refs/remotes/')} is not used: {one_line(error)}"
            )
            continue
        if best is None or plan.distance < best[0]:
            best = (plan.distance, text, plan)
    assert best is not None  # "no lock at all" is always tried
    _write_lock(root, best[1])
    return replace(best[2], notes=(*best[2].notes, *notes))


def _locks(root: Path) -> Iterator[tuple[str, bytes | None]]:
    """Yield the branch's lock, those of the newest runs, and none, each with its location."""
    newest = git(
        root, "for-each-ref", "--sort=-committerdate", f"--count={_LOCKS_TRIED}", "--format=%(refname)", _RUNS
    ).split()
    for reference in (_OWN, *newest):
        printed = subprocess.run(
            ["git", "-C", str(root), "show", f"{reference}:./{paths.LOCK_FILE}"], capture_output=True, check=False
        )
        if printed.returncode == 0:
            yield reference, printed.stdout
    yield "", None


def _write_lock(root: Path, text: bytes | None) -> None:
    if text is None:
        (root / paths.LOCK_FILE).unlink(missing_ok=True)
    else:
        (root / paths.LOCK_FILE).write_bytes(text)


def publish(root: Path, commit: str) -> str | None:
    """Push the branch ``runs/*`` that ends at ``commit`` to origin; returns its name, None if there
    is none because HEAD holds the commit.

    Raises:
        FlowError: origin refuses.
    """
    names = git(root, "for-each-ref", "--points-at", commit, "--format=%(refname:short)", "refs/heads/runs/").split()
    if not names:
        return None
    git(root, "push", "--quiet", "origin", f"{names[0]}:{names[0]}")
    return names[0]
