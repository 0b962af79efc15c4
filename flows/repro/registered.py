"""A note that the registry has what ``dvc.lock`` holds: a run that has nothing to do reads it, and
queries no server and no remote.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from flows.processes.environment import state
from stages.domain.core.digest import digest
from stages.runtime import paths
from stages.tracking.lineage.remote import REMOTE_VARIABLE
from stages.tracking.lineage.uri import TrackingError, display_uri, tracking_uri
from stages.tracking.registry.register import RegisterReport
from stages.tracking.session import Session

NOTE = "registered.json"


def is_noted(session: Session, *, pushed: bool = False) -> bool:
    """Return whether this lock, with these parameters, was registered in this store; ``pushed``:
    and pushed by ``run --push``.
    """
    note = _read(session.root)
    return all(note.get(name) == value for name, value in _identity(session).items()) and (
        not pushed or note.get("pushed") is True
    )


def write(session: Session, report: RegisterReport) -> None:
    """Note that `register` has succeeded."""
    before = _read(session.root)
    keep = {"pushed": is_noted(session, pushed=True), "champion": before.get("champion")}
    if report.candidate is not None and before.get("judged") == report.candidate:
        keep["judged"] = report.candidate
    _write(session.root, {**_identity(session), "candidate": report.candidate, **keep})


def pushed(root: Path) -> None:
    """Note that run cache and branch of the registered state were pushed."""
    _write(root, {**_read(root), "pushed": True})


def promoted(root: Path, version: int) -> None:
    """Note the champion's version, as far as this project has seen."""
    if note := _read(root):
        _write(root, {**note, "champion": version})


def judged(root: Path, candidate: int) -> None:
    """Note that the gate has decided about ``candidate``, either way."""
    if note := _read(root):
        _write(root, {**note, "judged": candidate})


def awaits_gate(root: Path) -> bool:
    """Return whether the noted candidate has not been put to the gate; False if none is noted."""
    note = _read(root)
    return note.get("candidate") is not None and note["candidate"] != note.get("judged")


def awaits_promotion(root: Path) -> bool:
    """Return whether there may be a candidate that is not the champion; True if nothing is
    noted."""
    note = _read(root)
    return note.get("candidate") is None or note["candidate"] != note.get("champion")


def other_store(root: Path) -> TrackingError | None:
    """Reason why the present store cannot tell what is registered: `register` last wrote into
    another one. None if it can, as far as is noted.
    """
    note, present = _read(root), display_uri(tracking_uri(root))
    # Notes that do not name the remote by itself are of another form.
    if "remote" not in note or note.get("store") == present:
        return None
    return TrackingError(
        "MLFLOW_TRACKING_URI",
        f"this project's versions were registered in {note.get('store')}, and the store is now {present}",
        "set it as it was then, or run vidbridge register, which makes the present store the project's",
    )


def _identity(session: Session) -> dict[str, str | None]:
    root, lock = session.root, session.root / paths.LOCK_FILE
    return {
        "lock": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None,
        "params": digest(session.params.model_dump(mode="json")),
        "store": display_uri(tracking_uri(root)),
        "remote": display_uri(os.environ[REMOTE_VARIABLE]) if os.environ.get(REMOTE_VARIABLE) else None,
    }


def _read(root: Path) -> dict[str, Any]:
    try:
        note = json.loads((state(root) / NOTE).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _write(root: Path, note: dict[str, Any]) -> None:
    path = state(root) / NOTE
    unfinished = path.with_suffix(paths.UNFINISHED)
    unfinished.write_text(json.dumps(note))
    unfinished.replace(path)
