"""Tasks of one's own in a project without code: from rows to a promoted model, and what an edit of
them runs again. make test-slow"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.repro.plan import make_plan
from stages.domain.core.records import Sample, Score
from stages.lib.rows.jsonl import read_rows
from tests.support.checkout import ROOT
from tests.support.projects.own_tasks import EXAMPLES, MODULES
from tests.support.projects.repository import commit
from tests.support.projects.smoke import succeed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

TASKS = ("count", "grounding", "ocr")
SCORING = {"synthesize", "baselines", "grpo@own", "evaluate@base", "evaluate@cold-start", "evaluate@own"}


def scores(root: Path, policy: str) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((root / "scores" / policy / "scores.json").read_text())
    return table


def changed(root: Path) -> dict[str, list[str]]:
    """Stages that a plan would run for a reason of their own, with those reasons."""
    steps = make_plan(root).to_run
    return {step.name: own for step in steps if (own := [why for why in step.why if "will change" not in why])}


def test_from_rows_to_a_promoted_model_and_an_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*command: str) -> str:
        return succeed(root, *command, timeout_s=1400, PYTHONPATH=str(ROOT))

    root = tmp_path / "own"
    succeed(tmp_path, "vidbridge", "init", str(root), "--recipe", "smoke", PYTHONPATH=str(ROOT))
    for name in MODULES:
        shutil.copyfile(EXAMPLES / name, root / "tasks" / name)
    shutil.copyfile(EXAMPLES / "params.yaml", root / "params.yaml")
    run("python", str(EXAMPLES / "make_clips.py"), "data/bars")
    commit(root, "tasks of our own")
    output = run("vidbridge", "run", "--yes")
    assert all(task in output for task in TASKS)
    for task in TASKS:
        assert len(read_rows(root / f"data/samples/test/{task}.jsonl", Sample)) == 12
    own, baselines = scores(root, "own"), scores(root, "baselines")
    assert tuple(own["tasks"]) == TASKS
    assert own["format"] > 0.9
    # So few steps are enough to count and to find, far above answers that do not look.
    for task in ("count", "grounding"):
        assert own["tasks"][task]["mean"] > 0.2 + max(
            baselines["tasks"][task][trivial]["mean"] for trivial in ("random", "constant")
        )
        assert own["tasks"][task]["mean"] > 0.2 + own["tasks"][task]["blank"]
    assert {row.task for row in read_rows(root / "scores/own/predictions.jsonl", Score)} == set(TASKS)
    run("vidbridge", "promote")
    assert "promoted" in run("vidbridge", "history")
    commit(root, "run")

    monkeypatch.setenv("VIDBRIDGE_PROJECT", str(root))
    monkeypatch.chdir(root)
    assert make_plan(root).to_run == ()
    # Notes, caches and files elsewhere are no task.
    (root / "tasks/README.md").write_text("notes\n")
    (root / "tasks/__pycache__").mkdir()
    (root / "tasks/__pycache__/count.pyc").touch()
    (root / "notes.py").touch()
    assert make_plan(root).to_run == ()

    file = root / "tasks/count.py"
    file.write_text(file.read_text().replace("<= truth.error", "<= truth.error + 1"))
    found = changed(root)
    assert found.keys() == SCORING
    assert {why for reasons in found.values() for why in reasons} == {"dep tasks changed (README.md, count.py)"}
    weights = root / "models/cold-start/final/model.safetensors"
    trained = weights.stat().st_mtime_ns
    run("vidbridge", "run", "--yes")
    assert weights.stat().st_mtime_ns == trained, "SFT ran again though its samples did not change"
    assert scores(root, "own")["digest"] != own["digest"]
    assert scores(root, "baselines")["tasks"]["count"]["random"]["mean"] > baselines["tasks"]["count"]["random"]["mean"]
    run("vidbridge", "promote", "--reason", "a wider tolerance")
    assert sys.modules.get("tasks.count") is None
