"""``vidbridge accept`` and ``vidbridge scratch``: what is left to a person's judgement."""

from __future__ import annotations

import getpass
import json
import shutil
import time
from pathlib import Path

import typer

from flows import dvc, show
from flows.errors import UsageError
from flows.preflight import only_run
from flows.project import scratch

#: One line of JSON for each acceptance; tracked by git, so that a reader of the history finds the reason beside the lock.
ACCEPTED = Path("accepted.jsonl")


def accept(root: Path, stage: str, why: str) -> None:
    """Record that what changed about ``stage`` does not change its result.

    Raises:
        UsageError: no reason was given, there is no such stage, or nothing changed.
    """
    if not why.strip():
        raise UsageError("--why: is empty; say why the change does not matter, a later reader has to believe it")
    with only_run(root):
        step = next((step for step in dvc.plan(root, stage).steps if step.name == stage), None)
        assert step is not None  # a plan ends with the stage it was made for
        if step.state != "will run" or step.why == ("never ran",):
            raise UsageError(
                f"stage: {stage} is {'not made yet' if step.state == 'will run' else 'up to date'}; there is nothing to accept"
            )
        dvc.accept(root, stage)
        row = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "who": getpass.getuser(),
            "stage": stage,
            "why": why,
            "changes": step.why,
        }
        with (root / ACCEPTED).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    show.say(f"{stage} stands as it is ({'; '.join(step.why)}). Commit it with its reason: git add dvc.lock {ACCEPTED}")


def _entries(root: Path) -> list[Path]:
    folder = scratch(root)
    # One folder a stage, in it one for each set of parameters and inputs.
    return sorted(path for path in folder.glob("*/*") if path.is_dir())


def _size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def scratch_status(root: Path) -> None:
    """List what interrupted trainings would resume from."""
    entries = _entries(root)
    for path in entries:
        age_h = (time.time() - path.stat().st_mtime) / 3600
        show.say(f"{path.relative_to(scratch(root)).as_posix():<48} {_size_mb(path):>10.1f} MB   last written {age_h:.1f} h ago")
    show.say(
        f"{len(entries)} interrupted trainings in {scratch(root)}" + ("; delete them: vidbridge scratch clean" if entries else "")
    )


def scratch_clean(root: Path, ask: bool) -> None:
    """Delete it."""
    entries = _entries(root)
    if not entries:
        show.say(f"nothing to delete in {scratch(root)}")
        return
    size = sum(_size_mb(path) for path in entries)
    if ask and not typer.confirm(f"delete {len(entries)} folders, {size:.1f} MB? These trainings then start at step 0"):
        raise UsageError("scratch: nothing was deleted")
    with only_run(root):
        for path in entries:
            shutil.rmtree(path)
    show.say(f"deleted {len(entries)} folders, {size:.1f} MB")


def release_scratch(root: Path, stage: str, since: float) -> Path | None:
    """Delete what ``stage`` could have resumed from, now that DVC has committed its outputs; returns the folder, None when none was left.

    A stage marks its folder when it starts, so the one marked after ``since`` (seconds since the epoch) is meant. Several are left
    alone: the folder may be shared, and another worker may be training there.
    """
    folders = (scratch(root) / stage.replace("@", "-")).glob("*/code.txt")
    marked = [mark.parent for mark in folders if mark.stat().st_mtime >= since]
    if len(marked) != 1:
        return None
    shutil.rmtree(marked[0])
    return marked[0]
