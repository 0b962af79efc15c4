"""Deletion of a stage's resumable state once DVC has committed its outs."""

from __future__ import annotations

from pathlib import Path

from flows.processes.environment import scratch
from stages.runtime.leases import lease
from stages.runtime.leases.holder import Holder, holder
from stages.runtime.liveness import process_state
from stages.tracking.runs.scratch import RUN_FILE


def has_ended(holder: Holder) -> bool:
    return holder.process is not None and process_state(holder.process) == "gone"


def release_scratch(root: Path, stage: str, run: str) -> Path | None:
    """Delete the state from which ``stage`` could have resumed, now that DVC has committed its
    outputs; returns the folder, None if there was none.

    Deletes only a folder that the pipeline run ``run`` (its id in MLflow) was the last to use, and
    that nobody holds: on shared storage another host may be training there, or wait to take over
    what lies there.
    """
    for note in (scratch(root) / stage.replace("@", "-")).glob(f"*/{RUN_FILE}"):
        folder = note.parent
        if not _last_used_by(note, run) or ((now := holder(folder)) is not None and not has_ended(now)):
            continue
        mine = lease.take(folder, stage, wait=False)
        if mine is None:
            continue
        try:
            if not _last_used_by(note, run):
                continue
            mine.clear()
        finally:
            mine.release()
        return folder
    return None


def _last_used_by(note: Path, run: str) -> bool:
    try:
        return note.read_text(encoding="utf-8") == run
    except FileNotFoundError:
        return False
