"""A mapping of the project is identity: an edit of it runs ingest again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.processes.environment import QUIET
from flows.project import new_project
from flows.repro.plan import make_plan
from stages.domain.core.records import Clip
from stages.lib.rows.jsonl import read_rows
from tests.support.annotations.reading import one_video
from tests.support.checkout import ROOT
from tests.support.projects.repository import commit

ROWS = [{"film": "one", "says": "It rains.", "kind": "weather"}]


def ingested(root: Path) -> Clip:
    """Run ingest with DVC, without the flow; returns its only clip."""
    env = {**os.environ, **QUIET, "VIDBRIDGE_PROJECT": str(root), "PYTHONPATH": str(ROOT)}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "ingest"]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (clip,) = read_rows(root / "data/clips/manifest.jsonl", Clip)
    return clip


@pytest.mark.slow
def test_an_edit_of_a_mapping_runs_ingest_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "own"
    new_project.init(root, "smoke", smoke=False)
    monkeypatch.setenv("VIDBRIDGE_PROJECT", str(root))
    monkeypatch.chdir(root)
    one_video(root / "videos")
    (root / "videos/rows.json").write_text(json.dumps(ROWS))
    mapping = root / "mappings/ours.yaml"
    mapping.write_text("files: rows.json\nvideo: film\ncaption: says\nignore: [kind]\n")
    params = (root / "params.yaml").read_text()
    params = params.replace("source: data/corpus", "source: videos").replace(
        "format: jsonl", "format: mappings/ours.yaml"
    )
    (root / "params.yaml").write_text(params.replace("kind: rule,", "kind: rule_on_real_text,"))
    commit(root, "ours")
    assert (ingested(root).caption, ingested(root).label) == ("It rains.", None)
    assert [step.name for step in make_plan(root, "ingest").to_run] == []
    mapping.write_text("files: rows.json\nvideo: film\ncaption: says\nlabel: kind\n")
    (step,) = make_plan(root, "ingest").to_run
    assert step.name == "ingest"
    assert any("mappings" in why for why in step.why)
    assert ingested(root).label == "weather"
    assert [step.name for step in make_plan(root, "ingest").to_run] == []
