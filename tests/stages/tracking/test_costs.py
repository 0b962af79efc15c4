"""The cost of a plan's stages, estimated from earlier runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.project import run as running
from stages.params import load_params
from stages.tracking.runs.run import stage_run


def test_a_plan_says_what_earlier_runs_of_its_stages_cost(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = project / "params.yaml"
    with stage_run("grpo@bridge", load_params(params), project) as run:
        run.summary({"judge/questions": 12})
    with stage_run("grpo@general", load_params(params), project) as run:
        run.tag({"resumed_from": "5"})  # what it cost is no whole training
    steps = load_params(params).grpo["bridge"].steps
    text = params.read_text()
    bridge = text.index("\n  bridge:\n")
    params.write_text(text[:bridge] + text[bridge:].replace(f"steps: {steps}\n", f"steps: {3 * steps}\n", 1))
    capsys.readouterr()
    running.run(project, "grpo@general", dry_run=True, ask=False, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [step["stage"] for step in told["steps"] if step["state"] == "will run"] == ["grpo@bridge", "grpo@general"]
    scaled, unknown = told["cost"]["stages"]
    assert (scaled["basis"], scaled["why"][-len(f"with {steps} steps") :]) == ("scaled", f"with {steps} steps")
    assert scaled["hours"] > 0
    assert (unknown["hours"], unknown["why"]) == (None, "no earlier run, no declared rate")
    assert told["cost"]["unknown"] == ["grpo@general"]
    # Measured on the content of dvc.lock: two checkpoints of 2 MiB, in place and in the cache.
    assert scaled["disk_gb"] == pytest.approx(2 * 2 * 2**21 / 1e9, rel=0.01)
