"""The recipe `smoke` with all replies by the real engine: rollouts of GRPO, evaluation, a
benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.domain.core.records import Score
from stages.lib.rows.jsonl import read_rows
from stages.tracking.session import Session
from tests.support.projects.smoke import make_project, succeed
from tests.support.servers.engine.real import ENVIRON, NEEDED

pytestmark = NEEDED

BY_VLLM = {**ENVIRON, "VIDBRIDGE_ROLLOUT_ENGINE": "vllm", "VIDBRIDGE_ENGINE_KV_CACHE_GB": "0.25"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which a run by the engine has finished."""
    folder = make_project(tmp_path_factory.mktemp("smoke") / "project")
    succeed(folder, "vidbridge", "run", "--yes", timeout_s=1400, **BY_VLLM)
    return folder


def test_a_run_trains_and_scores_and_says_who_drew(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in ("bridge", "general"):
        history = [json.loads(line) for line in (project / f"models/{row}/history.jsonl").read_text().splitlines()]
        assert len(history) == 4
        assert all(step["sampling/logp_difference/mean"] < 1e-2 for step in history)
    monkeypatch.chdir(project)
    with Session(project) as session:
        client = session.client
        (experiment,) = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
        runs = client.search_runs([experiment])
    drew = {run.info.run_name: run.data.tags.get("vidbridge.rollout_engine") for run in runs}
    assert sorted(name for name, engine in drew.items() if engine == "vllm") == [
        *(f"evaluate@{row}" for row in ("base", "bridge", "cold-start", "general")),
        *("grpo@bridge", "grpo@general"),
    ]


@pytest.mark.parametrize("row", ["cold-start", "general"])
def test_scores_are_those_of_decoding_here(project: Path, tmp_path: Path, row: str) -> None:
    succeed(project, "python", "-m", "stages", "rescore", row, f"models/{row}/final", str(tmp_path))
    here = json.loads((tmp_path / "scores.json").read_text())
    there = json.loads((project / f"scores/{row}/scores.json").read_text())
    assert there["tasks"] == here["tasks"]


def test_a_benchmark_is_answered_alike(project: Path) -> None:
    replies = {}
    for engine in ("hf", "vllm"):
        succeed(
            project,
            *("vidbridge", "evaluate", "--model", "models/general/final", "--benchmark", "mix-vid-qa-test"),
            *("--annotations", "data/samples/test", "--out", f".vidbridge/{engine}", "--engine", engine),
            **{**ENVIRON, "VIDBRIDGE_ENGINE_KV_CACHE_GB": "0.25"},
        )
        lines = (project / f".vidbridge/{engine}/predictions.jsonl").read_text().splitlines()
        replies[engine] = {row["id"]: row["reply"] for row in map(json.loads, lines)}
    assert len(replies["hf"]) >= 8
    assert replies["vllm"] == replies["hf"]
    own = read_rows(project / "scores/general/predictions.jsonl", Score)
    assert all(replies["vllm"].get(score.sample_id, score.reply) == score.reply for score in own)
