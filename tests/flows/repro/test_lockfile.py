"""A lock that a kill truncated."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path

import pytest

from flows.project import run
from flows.repro import clone, lockfile
from stages.errors import VidbridgeError

WHOLE = (
    "schema: '2.0'\nstages:\n  corpus:\n    cmd: python -m stages.corpus\n    outs:\n    - path: data/corpus\n     "
    " md5: 1.dir\n"
)


@pytest.mark.parametrize(
    "broken", ["", "schema: '2.0'\nstages:\n  corpus:\n", WHOLE[:-20], "schema: '2.0'\nstages: [", "stages: {}\n"]
)
def test_a_broken_lock_is_replaced_by_the_copy_and_set_aside(tmp_path: Path, broken: str) -> None:
    (tmp_path / "dvc.lock").write_text(WHOLE)
    lockfile.keep(tmp_path)
    (tmp_path / "dvc.lock").write_text(broken)
    lockfile.keep(tmp_path)
    said = lockfile.mend(tmp_path)
    assert said is not None
    assert "last whole state" in said
    assert (tmp_path / "dvc.lock").read_text() == WHOLE
    assert (tmp_path / "dvc.lock.broken").read_text() == broken


def test_a_whole_lock_and_none_are_left_alone(tmp_path: Path) -> None:
    assert lockfile.mend(tmp_path) is None
    (tmp_path / "dvc.lock").write_text(WHOLE)
    assert lockfile.mend(tmp_path) is None
    assert (tmp_path / "dvc.lock").read_text() == WHOLE


def test_a_broken_lock_without_a_copy_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text("")
    assert "no copy" in (lockfile.mend(tmp_path) or "")
    assert not (tmp_path / "dvc.lock").exists()


@pytest.mark.parametrize("name", ["dvc.lock", "dvc.yaml", "params.yaml"])
def test_both_sides_of_a_merge_are_a_persons_to_settle(done: Path, name: str) -> None:
    """Neither set aside as cut short, nor replaced by the copy, nor passed over for the lock of an
    earlier run.
    """
    lockfile.keep(done)
    text = (done / name).read_text()
    half = text.index("\n", len(text) // 2) + 1
    conflict = f"{text[:half]}<<<<<<< HEAD\n  a: 1\n=======\n  a: 2\n>>>>>>> branch\n{text[half:]}"
    (done / name).write_text(conflict)
    attempts = [partial(run.run, done, "summary", dry_run=dry, ask=False) for dry in (True, False)]
    attempts += [partial(clone.choose_lock, done, "summary")] if name == "dvc.lock" else []
    subprocess.run(["git", "add", "-A"], cwd=done, check=True)
    subprocess.run(["git", "commit", "-qm", "with marks"], cwd=done, check=True)
    for attempt in attempts:
        with pytest.raises(
            VidbridgeError, match=rf"merge conflict in {name} \(line \d+\); settle it: .*git checkout --ours -- {name}"
        ):
            attempt()
    assert (done / name).read_text() == conflict
    assert not (done / "dvc.lock.broken").exists()
