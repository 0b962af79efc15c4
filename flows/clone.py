"""The scheduled run's own clone of the repository: it never disturbs the work tree of a person, and a lost one costs nothing.

Code comes from the branch, results from DVC's cache and remote, which the clone shares with the project it was made from.
``dvc.lock`` is the one file with two possible truths (the branch's, and that of earlier scheduled runs, which stand on branches
``runs/*``): the one that leaves the least to do is taken.
"""

from __future__ import annotations

import configparser
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from flows import dvc, recipes
from flows.errors import DvcError, FlowError, UsageError
from stages import layout
from stages.plain import redacted

LOCK = "dvc.lock"
PARAMS = "params.yaml"
_RUNS = "refs/remotes/origin/runs/"
#: Earlier runs whose lock is tried; older ones have less in common with the branch.
_LOCKS_TRIED = 3


def git(folder: Path, *arguments: str) -> str:
    """Run git in ``folder``; returns what it prints.

    Raises:
        FlowError: git is missing or says no.
    """
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise FlowError("git: not found; install it, scheduled runs work in a clone") from error
    if done.returncode:
        # Git repeats the address that it could not reach, password and all.
        raise FlowError(f"git {arguments[0]} in {folder}: {redacted(done.stderr.strip())}")
    return done.stdout.strip()


@dataclass(frozen=True)
class Clone:
    root: Path
    commit: str
    #: Whether the clone's DVC remote is one that other machines, or the project itself, can read.
    shared_remote: bool


def refresh(repository: str, branch: str, folder: Path) -> Clone:
    """Clone ``repository`` into ``folder``, or bring the clone there to the newest commit of ``branch``.

    What an earlier run left behind (edited parameters, a lock that was not committed) is dropped from the work tree; outputs and the
    state from which training resumes are ignored by git, so they stay.

    Raises:
        FlowError: the repository or the branch cannot be read.
    """
    if not (folder / ".git").is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        git(folder.parent, "clone", "--quiet", "--branch", branch, repository, folder.name)
    else:
        git(folder, "remote", "set-url", "origin", repository)
    git(folder, "fetch", "--quiet", "--prune", "origin", "+refs/heads/*:refs/remotes/origin/*")
    # A lock of git that a killed run left behind would stop every later one; nobody else works in this clone.
    (folder / ".git" / "index.lock").unlink(missing_ok=True)
    git(folder, "checkout", "--quiet", "--force", "--detach", f"origin/{branch}")
    shared = share_storage(repository, folder)
    return Clone(folder, git(folder, "rev-parse", "HEAD"), shared)


def share_storage(repository: str, folder: Path) -> bool:
    """Point the clone at the cache and the remote of the project it was made from; False when the remote stays this clone's own.

    A path in ``.dvc/config`` counts from that file, so in a clone it would name another folder.
    """
    config = configparser.ConfigParser()
    config.read(folder / ".dvc" / "config", encoding="utf-8")
    name = config.get("core", "remote", fallback=None)
    section = f"'remote \"{name}\"'"
    url = config.get(section, "url", fallback=None) if name else None
    if url is None:
        return False
    relative = "://" not in url and not Path(url).is_absolute()
    origin = Path(repository)
    local = configparser.ConfigParser()
    if origin.is_dir():
        local["cache"] = {"dir": str(origin.resolve() / ".dvc" / "cache")}
        if relative:
            local[section] = {"url": str((origin / ".dvc" / url).resolve())}
    with (folder / ".dvc" / "config.local").open("w", encoding="utf-8") as file:
        local.write(file)
    return not relative or origin.is_dir()


def configure(root: Path, recipe: str | None, source: str | None) -> None:
    """Set the parameters of this run: a recipe instead of the branch's own, and the folder of videos. The edit is committed with the lock.

    Raises:
        UsageError: no such recipe, or ``source`` is no folder with annotations.
        ParamsError: the recipe breaks a rule.
    """
    if recipe:
        recipes.use(root, recipe, force=True)
    if not source:
        return
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    table = yaml.load((root / PARAMS).read_text(encoding="utf-8"))
    folder = Path(source).expanduser()
    plain = table["ingest"]["format"] == "jsonl"
    name = table["ingest"]["annotations"] or (layout.ANNOTATIONS_FILE if plain else None)
    if not folder.is_absolute() or not (folder / name if name else folder).exists():
        raise UsageError(
            f"source: {source!r} is no absolute path of a folder with {name or 'annotations'}; name the folder of your videos"
        )
    table["ingest"]["source"] = str(folder)
    with (root / PARAMS).open("w", encoding="utf-8") as file:
        yaml.dump(table, file)


def choose_lock(root: Path, target: str) -> dvc.Plan:
    """Put the ``dvc.lock`` in place that leaves the least to run, and return the plan with it."""
    best: tuple[tuple[int, int], bytes | None, dvc.Plan] | None = None
    for text in dict.fromkeys(_locks(root)):
        _write_lock(root, text)
        try:
            plan = dvc.plan(root, target)
        except DvcError:
            if text is None:
                raise
            continue  # written by another version of the pipeline: not this one's lock
        if best is None or plan.distance < best[0]:
            best = (plan.distance, text, plan)
    assert best is not None  # "no lock at all" is always tried
    _write_lock(root, best[1])
    return best[2]


def _locks(root: Path) -> Iterator[bytes | None]:
    """The branch's lock, those of the newest runs, and none."""
    newest = git(root, "for-each-ref", "--sort=-committerdate", f"--count={_LOCKS_TRIED}", "--format=%(refname)", _RUNS).split()
    for reference in ("HEAD", *newest):
        shown = subprocess.run(["git", "-C", str(root), "show", f"{reference}:./{LOCK}"], capture_output=True, check=False)
        if shown.returncode == 0:
            yield shown.stdout
    yield None


def _write_lock(root: Path, text: bytes | None) -> None:
    if text is None:
        (root / LOCK).unlink(missing_ok=True)
    else:
        (root / LOCK).write_bytes(text)


def publish(root: Path, commit: str) -> str | None:
    """Push the branch ``runs/*`` that holds ``commit`` to origin; returns its name, None when HEAD holds it.

    Raises:
        FlowError: origin refuses.
    """
    names = git(root, "for-each-ref", "--contains", commit, "--format=%(refname:short)", "refs/heads/runs/").split()
    if not names:
        return None
    git(root, "push", "--quiet", "origin", f"{names[0]}:{names[0]}")
    return names[0]
