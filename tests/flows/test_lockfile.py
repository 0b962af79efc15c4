"""A lock that a kill cut short."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import lockfile

WHOLE = (
    "schema: '2.0'\nstages:\n  corpus:\n    cmd: python -m stages.corpus\n    outs:\n    - path: data/corpus\n      md5: 1.dir\n"
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
