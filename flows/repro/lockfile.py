"""A copy of the last complete ``dvc.lock``: DVC rewrites the file in place, and a process killed in
that instant truncates it.

A stage that the copy lacks is not lost: DVC's run cache still knows the stage that had just ended,
and takes its outputs without running it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from stages.runtime import paths
from stages.runtime.bounded_yaml import MOST_LOCK_BYTES, MergeConflict, YamlError, read_yaml


def kept(root: Path) -> Path:
    return root / paths.KEPT_LOCK


def is_whole(path: Path) -> bool:
    """Return whether the file parses as a lock of DVC's; a file that ends in the middle of a line
    or an entry does not.

    Raises:
        MergeConflict: both sides of a merge stand in it. It was not cut short, and which side
            counts is a person's to say.
    """
    try:
        table = read_yaml(path, MOST_LOCK_BYTES)
    except MergeConflict:
        raise
    except YamlError:
        return False
    if not isinstance(table, dict) or "schema" not in table or not path.read_bytes().endswith(b"\n"):
        return False
    if not isinstance(table.get("stages") or {}, dict):
        return False
    return all(isinstance(entry, dict) and "cmd" in entry for entry in (table.get("stages") or {}).values())


def is_broken(root: Path) -> bool:
    return (root / paths.LOCK_FILE).is_file() and not is_whole(root / paths.LOCK_FILE)


def keep(root: Path) -> None:
    """Copy a complete ``dvc.lock`` aside; one that another stage is writing is left for the next
    call.
    """
    lock, copy = root / paths.LOCK_FILE, kept(root)
    if lock.is_file() and is_whole(lock):
        copy.parent.mkdir(exist_ok=True)
        beside = copy.with_suffix(paths.UNFINISHED)
        shutil.copyfile(lock, beside)
        if is_whole(beside):
            beside.replace(copy)


def mend(root: Path) -> str | None:
    """Restore the kept copy over a broken ``dvc.lock`` and return a sentence about it; None if
    nothing was broken.

    Call it only while no other run works in the project. A broken lock without a copy is set aside
    as ``dvc.lock.broken``.
    """
    lock, copy = root / paths.LOCK_FILE, kept(root)
    if not is_broken(root):
        return None
    lock.replace(lock.with_name(paths.LOCK_FILE + ".broken"))
    if copy.is_file() and is_whole(copy):
        shutil.copyfile(copy, lock)
        return (
            f"{paths.LOCK_FILE} was cut short when a run was killed; the copy of its last whole state was put in its"
            " place"
        )
    return (
        f"{paths.LOCK_FILE} was cut short when a run was killed and there is no copy of it; DVC's run cache gives back"
        " what it knows"
    )
