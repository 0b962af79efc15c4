"""Ten minutes of recording without annotations, through `vidbridge data cut`, ingest and the
captioner at the test's endpoint, to samples of both bridging tasks that a browser shows."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.domain.core.records import Clip, Sample
from stages.ingest.curation.duplicates import NearDuplicate
from stages.lib.rows.jsonl import read_rows
from stages.synthesize.captioner import Captioned
from tests.support.judges.server import JudgeServer
from tests.support.pages import Elements
from tests.support.projects.smoke import call, make_project, succeed
from tests.support.video.recording import BEGINS_S, RATE, SCENE_S, TAKES_S, write_recording

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCENES = 40


def prepare(path: Path) -> None:
    raw: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["ingest"] |= {"source": "recordings", "curate": True, "near_duplicates": "report"}
    raw["judge"] |= {"kind": "rule_on_real_text"}
    raw["synthesize"] |= {
        "sampled_frames": 16,
        "writer": {
            **{"model": "author", "revision": "r1", "temperature": 0.7, "max_tokens": 300, "seed": 0, "tries": 2},
            **{"questions": True, "traces": None},
            "events": {"frames": 30, "max_pixels": 65536, "most": 4, "min_s": 1},
        },
    }
    raw["synthesize"]["tasks"]["mix_vid_qa"] |= {
        **{"max_clip_s": 12, "min_piece_s": 3, "max_piece_s": 4, "min_piece_frames": 1},
        **{"one_shot": True, "one_recording": True},
    }
    path.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")


def test_samples_come_of_a_recording_without_annotations(server: JudgeServer, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    prepare(project / "params.yaml")
    (project / "recordings").mkdir()
    planned = write_recording(project / "recordings/long.mp4", SCENES)

    assert f"1 recordings of {SCENES * SCENE_S}.0 s, {SCENES} shots: {SCENES} clips" in succeed(
        project, "vidbridge", "data", "cut", "recordings"
    )
    rows = [json.loads(line) for line in (project / "recordings/annotations.jsonl").read_text().splitlines()]
    edges = [(SCENE_S * n, SCENE_S * (n + 1)) for n in range(SCENES)]
    assert [(row["start"], row["end"]) for row in rows] == edges
    assert {row["source"] for row in rows} == {"long"}
    assert f"{SCENES} accepted; {SCENES} rows read: {SCENES} used, 0 rejected" in succeed(
        project, "vidbridge", "data", "check", "recordings"
    )

    environ = server.environment(VIDBRIDGE_JUDGE_RETRIES="0")
    said = succeed(project, "dvc", "repro", "ingest")
    assert "1 of 1 files were examined before" in said, "one decode for the cut and for ingest"
    server.last = 60
    assert "only the rest is asked" in (broken := call(project, "dvc", "repro", "synthesize", **environ)).stderr, broken
    server.last = None
    said = succeed(project, "dvc", "repro", "synthesize", **environ)

    clips = read_rows(project / "data/clips/manifest.jsonl", Clip)
    assert {clip.split for clip in clips} == {clips[0].split}
    assert all(clip.shots == () and clip.flags is None for clip in clips)
    # Every scene is shown twice, 300 s apart; one of them has too little contrast to tell.
    pairs = read_rows(project / "data/clips/near_duplicates.jsonl", NearDuplicate)
    start_of = {clip.clip_id: clip.first_frame / RATE for clip in clips}
    assert len(pairs) >= SCENES / 2 - 1
    assert {abs(start_of[one] - start_of[other]) for one, other in (pair.clips for pair in pairs)} == {300}
    told = {row.clip_id: row for row in read_rows(project / "data/samples/events.jsonl", Captioned)}
    right = 0
    for clip, scene in zip(sorted(clips, key=lambda clip: clip.first_frame), planned, strict=True):
        wanted = [f"the {scene.colour} box {verb}" for verb in scene.verbs]
        right += [event.caption for event in told[clip.clip_id].events] == wanted
        for event, begins in zip(told[clip.clip_id].events, BEGINS_S, strict=False):
            assert abs(event.span.start - RATE * begins) <= 1.5 * RATE
            assert abs(event.span.stop - RATE * (begins + TAKES_S)) <= 1.5 * RATE
    assert right >= 0.9 * SCENES, f"{right} of {SCENES} scenes were told as they are"
    summary = json.loads((project / "data/samples/summary.json").read_text())
    assert summary["captioner"]["clips"]["told"] >= right
    split = clips[0].split
    samples = {
        task: read_rows(project / f"data/samples/{split}/{task}.jsonl", Sample)
        for task in ("dark_event_infer", "mix_vid_qa")
    }
    assert all(len(made) >= SCENES / 2 for made in samples.values()), {task: len(s) for task, s in samples.items()}
    assert all("box" in sample.question for sample in samples["mix_vid_qa"])

    succeed(project, "vidbridge", "data", "browse", "--out", "page.html")
    page = Elements((project / "page.html").read_text())
    assert "DarkEventInfer" in page.text or "dark_event_infer" in page.text
    if CHROMIUM is not None:
        shot = project / "page.png"
        subprocess.run(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--window-size=1200,1600",
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--screenshot={shot}",
                (project / "page.html").as_uri(),
            ],
            capture_output=True,
            timeout=120,
            check=True,
        )
        assert shot.stat().st_size > 20_000
