"""The recipe `smoke` on recordings in parts, with open questions: synthesis, training, evaluation.
make test-slow"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.domain.core.records import Clip, Sample, Score
from stages.domain.core.timeline import plain
from stages.domain.tasks import qa
from stages.lib.rows.jsonl import read_rows
from stages.lib.video.encoder import ffmpeg_binary
from stages.lib.video.loader import FrameLoader
from stages.lib.video.reader import read_frames
from stages.params import load_params
from tests.support.projects.repository import commit, edit
from tests.support.projects.smoke import make_project, succeed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

CLIP_S = 2


def _tapes(corpus: Path, folder: Path) -> dict[str, Path]:
    """Put the clips of each split of the corpus behind one another in two recordings, without loss,
    and annotate them as parts of these. Returns the file of each part, by its id."""
    rows = [json.loads(line) for line in (corpus / "annotations.jsonl").read_text().splitlines()]
    tapes: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(rows):
        tapes.setdefault(f"{row['split']}-{number % 2}", []).append(row)
    parts, files = list[dict[str, Any]](), dict[str, Path]()
    folder.mkdir()
    for tape, of_tape in tapes.items():
        listed = folder / f"{tape}.txt"
        listed.write_text("".join(f"file '{corpus / row['video']}'\n" for row in of_tape))
        command = [ffmpeg_binary(), "-v", "error", "-f", "concat", "-safe", "0", "-i", str(listed)]
        subprocess.run([*command, "-c:v", "libx264", "-qp", "0", str(folder / f"{tape}.mp4")], check=True)
        listed.unlink()
        for number, row in enumerate(of_tape):
            start = CLIP_S * number
            events = [e | {"start": e["start"] + start, "end": e["end"] + start} for e in row["events"]]
            part = row | {"video": f"{tape}.mp4", "start": start, "end": start + CLIP_S, "events": events}
            part |= {"id": f"{tape}-{number}", "source": tape}
            if number % 2:
                part["open_qa"] = [{"question": "what happens last ?", "answer": events[-1]["caption"]}]
            parts.append(part)
            files[part["id"]] = corpus / row["video"]
    (folder / "annotations.jsonl").write_text("".join(json.dumps(part) + "\n" for part in parts))
    return files


def test_parts_and_open_questions_are_trained_on_and_scored(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    succeed(project, "dvc", "repro", "--quiet", "corpus")
    files = _tapes(project / "data/corpus", tmp_path / "tapes")
    params = project / "params.yaml"
    edit(params, "source: data/corpus", f"source: {tmp_path / 'tapes'}")
    edit(params, "judge: {kind: rule,", "judge: {kind: rule_on_real_text,")
    commit(project, "tapes")
    checked = json.loads(succeed(project, "vidbridge", "data", "check", str(tmp_path / "tapes"), "--json"))
    assert checked["rows"] == {"read": len(files), "used": len(files), "rejected": 0}
    succeed(project, "vidbridge", "run", "--yes", timeout_s=1400)

    clips = {clip.clip_id: clip for clip in read_rows(project / "data/clips/manifest.jsonl", Clip)}
    assert set(clips) == set(files)
    assert all(clip.excerpt is not None for clip in clips.values())
    assert {(clip.path, clip.split) for clip in clips.values()} == {
        (f"{split}-{n}.mp4", split) for split in ("train", "validation", "test") for n in range(2)
    }
    loader = FrameLoader(clips, tmp_path / "tapes", 0)
    for name, file in files.items():
        expected, _ = read_frames(file, range(clips[name].frames))
        assert np.array_equal(
            loader.frames(plain(name, len(expected), clips[name].rate), range(len(expected))), expected
        )

    samples = read_rows(project / "data/samples/test/qa.jsonl", Sample)
    questions = {sample.question for sample in samples}
    assert "what happens last ?" in questions, "of the annotation"
    assert any(question.startswith("What happens right after") for question in questions), "of the events"
    scores = json.loads((project / "scores/general/scores.json").read_text())
    assert set(scores["tasks"]) >= {qa.NAME, "mcqa", "mix_vid_qa"}
    marks = [row for row in read_rows(project / "scores/general/predictions.jsonl", Score) if row.task == qa.NAME]
    assert {row.sample_id for row in marks} <= {sample.sample_id for sample in samples}
    assert len(marks) == min(len(samples), load_params(params).evaluation.samples_per_task)
    assert {row.value for row in marks} <= {0.0, 1.0}
    log = "".join(path.read_text() for path in (project / "models/general").rglob("*.jsonl"))
    assert '"qa' in log or "/qa" in log, "it was trained on"
    assert "nothing to do" in succeed(project, "vidbridge", "run", "--yes")
