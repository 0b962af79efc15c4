"""``vidbridge score`` as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from suite_files import lines, predicted, video_mme

ROOT = Path(__file__).parents[2]


def vidbridge(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", "score", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_the_table_the_file_and_the_messages(tmp_path: Path) -> None:
    rows = [video_mme(question_id=f"[b]{i}", task_type="[red]OCR") for i in range(3)]
    annotations = lines(tmp_path / "videomme.jsonl", rows)
    predictions = predicted(tmp_path, {"[b]0": "B", "[b]1": ""})
    asked = ("--annotations", annotations, "--predictions", predictions)
    shown = vidbridge("--benchmark", "video-mme", *asked, "--out", tmp_path / "scores.json")
    assert shown.returncode == 0, shown.stderr
    for words in ("PARTIAL", "2 of 3 questions answered", "strict", "VLMEvalKit", "(constant)", "task: [red]OCR", "[b]2", "50.0 ±"):
        assert words in shown.stdout, words
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["missing"] == ["[b]2"]
    assert written["scores"]["strict"]["overall"]["accuracy"]["mean"] == 50
    wrong = vidbridge("--benchmark", "mvbench", *asked)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "give --benchmark video-mme" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert vidbridge("--benchmark", "videomme", *asked).returncode == 2
    same = vidbridge("--benchmark", "video-mme", *asked, "--out", predictions)
    assert same.returncode == 2
    assert predictions.read_text().startswith('{"id"'), "what was given is never overwritten"
