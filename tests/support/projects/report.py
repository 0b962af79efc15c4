"""Results of the recipe `smoke` in small, some of them hostile, for the report."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from fractions import Fraction
from pathlib import Path
from unittest.mock import patch

import numpy as np
import yaml
from dvc.repo import Repo

from stages.domain.core.records import Clip, Sample, TaskName
from stages.domain.core.replies import render_reply
from stages.domain.statistics.metrics import TaskResult, mean_over_tasks, recordings_shown, task_results
from stages.lib.evaluation.held_out import evaluation_samples
from stages.lib.evaluation.results import (
    BaselineScores,
    ControlledResult,
    Mean,
    PolicyScores,
    TrivialResults,
)
from stages.lib.judging.batch import score_replies
from stages.lib.judging.build import referee_of
from stages.lib.rows.jsonl import write_json, write_record, write_rows
from stages.lib.video.encoder import encode
from stages.params import Params, load_params
from stages.runtime import paths
from stages.summary import stage
from stages.tracking.runs.run import stage_run
from tests.support import builders
from tests.support.checkout import ROOT

HOSTILE = '</script></style><img src=x onerror=alert(1)><a href="http://evil.example/">\'{{ 7 * 7 }}'

#: Rows of the recipe `smoke`, and what each replies here: nothing of use, the first event only,
#: what is right, and that again.
ROWS = ("base", "cold-start", "bridge", "general")
TASKS = ("dark_event_infer", "mcqa", "caption")

LOCKED = {
    "corpus": {"cmd": "x", "outs": [{"path": "data/corpus", "md5": "1.dir"}]},
    "ingest": {
        "cmd": "x",
        "deps": [{"path": "data/corpus", "md5": "1.dir"}],
        "outs": [{"path": "data/clips", "md5": "2.dir"}],
    },
    "summary": {
        "cmd": "x",
        "deps": [{"path": "data", "md5": "3.dir"}],
        "outs": [{"path": "reports/plots", "md5": "4.dir"}],
    },
}


def sample_of(clip: Clip, task: str) -> Sample:
    values = {
        "sample_id": f"{task}/{clip.clip_id}",
        "task": task,
        "split": "test",
        "clip_id": clip.clip_id,
        "timeline": {"rate": "8", "segments": [{"clip_id": clip.clip_id, "span": {"start": 0, "stop": 16}}]},
        "sampled_frames": 8,
        "question": "what happens ?",
        "reference": clip.caption,
        "events": [event.caption for event in clip.events],
    }
    if task == "mcqa":
        values |= {
            "question": clip.questions[0].question,
            "options": clip.questions[0].options,
            "reference": "B",
            "events": [],
        }
    if task == "dark_event_infer":
        values["timeline"] |= {"dark": [clip.events[0].span.model_dump()]}
        values |= {"reference": clip.events[0].caption, "events": [clip.events[0].caption]}
    return Sample.model_validate(values)


def said_by(row: str, sample: Sample) -> str:
    if row == "base" or (row == "general" and sample.sample_id == "caption/c0"):
        return HOSTILE if row == "base" else render_reply(HOSTILE, HOSTILE)
    if row == "cold-start" and sample.sample_id == "dark_event_infer/c1":
        return render_reply(HOSTILE, HOSTILE)
    if row == "cold-start":
        return render_reply("it moves", "A" if sample.task == "mcqa" else sample.events[0])
    return render_reply("it is plain to see", sample.reference)


def write_data() -> None:
    """Three clips of real H.264, nine samples of them, and what the stages count of both."""
    clips = [builders.clip(n, colour, split="test") for n, colour in enumerate(("red", "green", "blue"))]
    for number, clip in enumerate(clips):
        path = paths.CORPUS / clip.path
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = np.arange(64, dtype=np.uint8)[None, :, None, None] * (number + 1)
        encode(
            np.broadcast_to(rows + 8 * np.arange(16, dtype=np.uint8)[:, None, None, None], (16, 64, 64, 3)),
            Fraction(8),
            path,
            18,
        )
    write_rows(paths.CLIPS / "manifest.jsonl", clips)
    counts = {
        "accepted": 3,
        "sources": 3,
        "duration_s": 6.0,
        "splits": {"test": 3},
        "codecs": {"h264": 3},
        "rejected": {HOSTILE: 1},
    }
    write_json(
        paths.CLIPS / "summary.json", counts | {key: {} for key in ("durations", "sizes", "licences", "not_for_decord")}
    )
    for task in TASKS:
        write_rows(paths.SAMPLES / f"test/{task}.jsonl", [sample_of(clip, task) for clip in clips])
    made = {split: dict.fromkeys(TASKS, 3 if split == "test" else 0) for split in ("train", "validation", "test")}
    write_json(paths.SAMPLES / "summary.json", {"samples": made, "rejects": {}, "text_only": None})


def score(params: Params, row: str, samples: list[Sample], replies: list[str]) -> dict[TaskName, TaskResult]:
    """The rule judge's own scores of what a row says, in its file, and the table they make."""
    given = score_replies(samples, replies, referee_of(params), params.rewards)
    write_rows(paths.scores(row) / "predictions.jsonl", given)
    return task_results(given, recordings_shown(samples), 0.95)


def write_scores(params: Params, row: str) -> None:
    samples = evaluation_samples(params)
    results = score(params, row, samples, [said_by(row, sample) for sample in samples])
    controls = {"blank": 0.25, "blank_high": 0.3, "shuffled": 0.4, "shuffled_high": 0.45}
    table = PolicyScores(
        row=row,
        digest="d",
        split="test",
        samples=9,
        mean=mean_over_tasks(results),
        blank_mean=0.25,
        shuffled_mean=0.4,
        format=0.5,
        tasks={task: ControlledResult(**result.model_dump(), **controls) for task, result in results.items()},
    )
    write_record(paths.scores(row) / paths.SCORES_FILE, table)
    steps = [{"step": step, "loss": 3 / step, "reward": 0.1 * step, "reward/mcqa": 0.2 * step} for step in range(1, 5)]
    gauges = [
        {"gauge/enumeration": 0.3},
        {"gauge/blank_video": 0.1, "gauge/enumeration": 0.05},
        {},
        {"gauge/blank_video": 0.7},
    ]
    lines = [
        json.dumps({**step, **(gauge if row in params.grpo else {})}) for step, gauge in zip(steps, gauges, strict=True)
    ]
    (paths.scores(row) / paths.HISTORY_FILE).write_text("\n".join(lines) + "\n")


@contextmanager
def report_project(root: Path) -> Iterator[Path]:
    """Results of the recipe `smoke` in small: real clips, scores of the rule judge and runs in
    MLflow, of replies that no model gave."""
    root.mkdir()
    shutil.copyfile(ROOT / "infra/recipes/smoke.yaml", root / "params.yaml")
    (root / "dvc.yaml").write_text("stages: {}\n")
    Repo.init(str(root), no_scm=True).close()
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": LOCKED}))
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "VIDBRIDGE_"))}
    with chdir(root), patch.dict(os.environ, outside | {"VIDBRIDGE_PROJECT": str(root)}, clear=True):
        params = load_params()
        write_data()
        for row in ROWS:
            write_scores(params, row)
        samples = evaluation_samples(params)
        trivial = score(params, "baselines", samples, [said_by("cold-start", sample) for sample in samples])
        mean = Mean(mean=mean_over_tasks(trivial))
        tasks = {task: TrivialResults(random=result, constant=result) for task, result in trivial.items()}
        table = BaselineScores(digest="d", split="test", random=mean, constant=mean, constant_replies={}, tasks=tasks)
        write_record(paths.scores("baselines") / paths.SCORES_FILE, table)
        with stage_run("corpus", params):
            pass
        assert stage.main() == 0
        yield root
