"""The state from which interrupted trainings resume: listed, and deleted where no process uses
it."""

from __future__ import annotations

import time
from pathlib import Path

import typer

from flows.console import show
from flows.errors import UsageError
from flows.processes.environment import scratch
from flows.processes.locks import only_run
from flows.repro.scratch import has_ended
from stages.runtime.leases import lease
from stages.runtime.leases.holder import holder


def _entries(root: Path) -> list[Path]:
    folder = scratch(root)
    # One folder a stage, in it one for each set of parameters and inputs.
    return sorted(path for path in folder.glob("*/*") if path.is_dir())


def _size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def show_scratch(root: Path) -> None:
    """List the state from which interrupted trainings would resume, and who uses it."""
    entries = _entries(root)
    for path in entries:
        age_h = (time.time() - path.stat().st_mtime) / 3600
        now = holder(path)
        held = "" if now is None or has_ended(now) else f"   held by {now.display_name}"
        show.say(
            f"{path.relative_to(scratch(root)).as_posix():<48} {_size_mb(path):>10.1f} MB   last written {age_h:.1f} h"
            f" ago{held}"
        )
    show.say(
        f"{len(entries)} interrupted trainings in {scratch(root)}"
        + ("; delete them: vidbridge scratch clean" if entries else "")
    )


def delete_scratch(root: Path, ask: bool) -> None:
    """Delete it, except where a live process, on whatever host, is training."""
    entries = _entries(root)
    if not entries:
        show.say(f"nothing to delete in {scratch(root)}")
        return
    size = sum(_size_mb(path) for path in entries)
    if ask and not typer.confirm(f"delete {len(entries)} folders, {size:.1f} MB? These trainings then start at step 0"):
        raise UsageError("scratch", "not confirmed", "nothing was deleted")
    deleted, size = 0, 0.0
    with only_run(root):
        for path in entries:
            weight = _size_mb(path)
            # A process that cannot be looked up from here is judged by its sign of life.
            if not lease.delete(path, "scratch"):
                now = holder(path)
                by = f" by {now.display_name}" if now else ""
                show.say(f"{path.relative_to(scratch(root)).as_posix()}: is in use{by}; left as it is")
                continue
            deleted, size = deleted + 1, size + weight
    show.say(f"deleted {deleted} folders, {size:.1f} MB")
