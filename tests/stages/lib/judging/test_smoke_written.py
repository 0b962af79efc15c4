"""The recipe `smoke` with a writer at an endpoint, as DVC runs it: killed by an endpoint that
fails, resumed, and used by SFT."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from stages.domain.core.records import Sample
from stages.lib.rows.jsonl import read_rows
from tests.support.judges.server import KEY, Asked, JudgeServer, written
from tests.support.projects.smoke import call, make_project, succeed


def switch_on(path: Path) -> None:
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    # The same objects, so that the file has them once and refers to them (`*`).
    traces = {
        "tasks": ["dark_event_infer", "mix_vid_qa"],
        "least": 1.0,
        "judge": raw["judge"],
        "rewards": raw["rewards"],
    }
    raw["synthesize"]["writer"] = {
        **{"model": "author", "revision": "r1", "temperature": 0.7, "max_tokens": 300, "seed": 0, "tries": 2},
        **{"questions": True, "traces": traces, "events": None},
    }
    path.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    assert "judge: *" in path.read_text()


def sometimes_wrong(asked: Asked) -> dict[str, object]:
    return written(asked) if "red" not in asked.inside["seen"] else {**written(asked), "answer": "it sleeps"}


@pytest.mark.slow
def test_the_recipe_is_written_resumed_and_learned_from(server: JudgeServer, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    switch_on(project / "params.yaml")
    server.says = {"write_dark_trace": sometimes_wrong}
    environ = server.environment(VIDBRIDGE_JUDGE_RETRIES="0")
    succeed(project, "dvc", "repro", "ingest")

    done = call(project, "dvc", "repro", "synthesize")
    assert "error: VIDBRIDGE_JUDGE_URL: not set, and synthesize.writer is on" in done.stderr + done.stdout
    server.last = 100
    done = call(project, "dvc", "repro", "synthesize", **environ)
    said = done.stderr + done.stdout
    assert done.returncode != 0
    assert "error: synthesize.writer: " in said
    assert "and only the rest is asked" in said
    assert "Traceback" not in said
    failed, server.last = server.requests, None
    said = succeed(project, "dvc", "repro", "synthesize", **environ)
    everything = Counter((asked.kind, asked.user, asked.seed) for asked in server.asked)
    assert server.requests - failed == len(everything) - 100, "what came before the failure is not asked again"

    summary = json.loads((project / "data/samples/summary.json").read_text())
    assert summary["writer"]["questions"] == {"written": 64}
    assert "questions: 64 written; dark_event_infer traces: " in said
    mixed = read_rows(project / "data/samples/train/mix_vid_qa.jsonl", Sample)
    assert len(mixed) == 48
    assert all(sample.question.endswith(("as number 1 ?", "as number 2 ?")) for sample in mixed)
    dark = read_rows(project / "data/samples/train/dark_event_infer.jsonl", Sample)
    traced = [sample for sample in dark if sample.trace is not None]
    assert {"kept": len(traced), "none": len(dark) - len(traced)} == summary["writer"]["traces"]["dark_event_infer"]
    assert 0 < len(traced) < len(dark)
    assert summary["writer"]["refused"] == {"reward-too-small": 2 * (len(dark) - len(traced))}
    assert "the red" not in "".join(sample.trace.thinking for sample in traced if sample.trace)

    succeed(project, "vidbridge", "data", "browse", "--out", "page.html")
    page = (project / "page.html").read_text()
    assert "<h3>MixVidQA questions by a model</h3><dl><dt>written</dt><dd>64</dd></dl>" in page
    assert "<h3>traces by a model, dark_event_infer</h3>" in page

    # SFT learns from the kept samples, and counts the others.
    said = succeed(project, "dvc", "repro", "sft", **environ)
    assert f"{len(dark) - len(traced)} without a trace left out" in said

    # Repeated: the same bytes, no request. With one clip more: requests for the new samples only.
    before = {path: path.read_bytes() for path in (project / "data/samples").rglob("*.json*")}
    asked = server.requests
    succeed(project, "dvc", "repro", "--force", "--single-item", "synthesize", **environ)
    assert {path: path.read_bytes() for path in (project / "data/samples").rglob("*.json*")} == before
    assert server.requests == asked
    raw = yaml.safe_load((project / "params.yaml").read_text())
    raw["corpus"]["train_clips"] += 1
    (project / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    succeed(project, "dvc", "repro", "synthesize", **environ)
    again = Counter((asked.kind, asked.user, asked.seed) for asked in server.asked) - everything
    assert 0 < server.requests - asked < 40
    assert set(again.values()) == {1}, "each new question once, no old one"

    assert b"writer/prompt_tokens" in (project / ".vidbridge/mlflow.db").read_bytes()
    for path in project.rglob("*"):
        if path.is_file() and project / "tests" not in path.parents:
            assert KEY.encode() not in path.read_bytes(), f"{path} holds the key"
