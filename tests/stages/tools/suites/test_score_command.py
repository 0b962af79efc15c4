"""``vidbridge score`` as a person types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.processes.commands import commands
from tests.support.suites.annotations import lines, predicted, video_mme


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with this checkout's parameters, in which nothing was run."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def test_the_table_the_file_and_the_messages(project: Path, tmp_path: Path) -> None:
    rows = [video_mme(question_id=f"[b]{i}", task_type="[red]OCR") for i in range(3)]
    annotations = lines(tmp_path / "videomme.jsonl", rows)
    predictions = predicted(tmp_path, {"[b]0": "B", "[b]1": ""})
    asked = ("--annotations", str(annotations), "--predictions", str(predictions))
    scored = ["score", "--benchmark", "video-mme", *asked]
    wanted = (
        [*scored, "--out", str(tmp_path / "scores.json")],
        ["score", "--benchmark", "mvbench", *asked],
        ["score", "--benchmark", "videomme", *asked],
        [*scored, "--out", str(predictions)],
    )
    shown, wrong, unknown, same = commands(project, [({}, command) for command in wanted])
    assert shown.returncode == 0, shown.stderr
    for words in (
        "PARTIAL",
        "2 of 3 questions answered",
        "strict",
        "VLMEvalKit",
        "(constant)",
        "task: [red]OCR",
        "[b]2",
        "50.0",
    ):
        assert words in shown.stdout, words
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["missing"] == ["[b]2"]
    assert written["scores"]["strict"]["overall"]["accuracy"]["mean"] == 50
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "pass --benchmark video-mme" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert unknown.returncode == 2
    assert same.returncode == 2
    assert predictions.read_text().startswith('{"id"'), "what was given is never overwritten"


def test_annotations_may_lie_on_the_hub(project: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = f"hf://datasets/someone/Video-MME@{commit}"
    # The cache of an earlier download by the hub's own client; without a network only that is
    # found.
    snapshot = tmp_path / "hub/datasets--someone--Video-MME/snapshots" / commit
    snapshot.mkdir(parents=True)
    lines(snapshot / "videomme.jsonl", [video_mme(question_id="a")])
    predictions = predicted(tmp_path, {"a": "B"})
    offline = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    asked = ["score", "--benchmark", "video-mme", "--no-baselines", "--predictions", str(predictions), "--annotations"]
    places = (place, place.replace("someone", "nobody"), place[:-1])
    there, *refused = commands(project, [({}, [*asked, at]) for at in places], **offline)
    assert there.returncode == 0, there.stderr
    assert "1 of 1 questions answered" in there.stdout
    for one, says in zip(
        refused, ("the hub does not provide it", "names no dataset of the hub at a commit"), strict=True
    ):
        assert one.returncode == 1
        assert says in one.stderr
        assert "Traceback" not in one.stderr
