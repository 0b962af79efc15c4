"""A warm process for a run: one that is there already is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.processes.warm_pool import warmed
from stages.params import load_params
from stages.runtime.warm import VARIABLE
from tests.support.checkout import ROOT


def test_a_warm_process_that_a_block_around_has_started_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "/somewhere")
    with warmed(tmp_path, load_params(ROOT / "infra/recipes/smoke.yaml"), 9) as environ:
        assert environ == {VARIABLE: "/somewhere"}
    assert list(tmp_path.iterdir()) == []  # another would have had a log
