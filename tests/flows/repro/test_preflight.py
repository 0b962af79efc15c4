"""Checks before the first stage: the judge's endpoint and the embedder's model."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from flows.params_file.sizes import disk_need_gb
from flows.project.diagnosis import services
from flows.repro.preflight import endpoints, judge_problems, problems
from flows.repro.steps import Plan, PlanStep, StageMeta
from stages.params import parse_params
from stages.tracking.session import Session
from tests.support.checkout import ROOT
from tests.support.judges.server import KEY, JudgeServer

RECIPE = ROOT / "infra/recipes/tiny.yaml"


def test_a_run_is_told_what_keeps_its_judge_from_being_asked(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(url: str, key: str) -> str:
        monkeypatch.setenv("VIDBRIDGE_JUDGE_URL", url)
        monkeypatch.setenv("VIDBRIDGE_JUDGE_KEY", key)
        return " ".join(map(str, judge_problems("JUDGE", "judge.kind is 'openai'")))

    assert found(server.url, KEY) == found(f"{server.url}/", f"{KEY}\n") == ""
    assert found(server.url, "another").startswith(
        "VIDBRIDGE_JUDGE_KEY: the endpoint at VIDBRIDGE_JUDGE_URL does not accept it (401)"
    )
    assert found("", KEY).startswith("VIDBRIDGE_JUDGE_URL: not set")
    for url, key in (
        ("http://127.0.0.1:1/v1", "k"),
        ("nowhere", "k"),
        (server.url, "se cret\r\nx"),
        (server.url, "secrét"),
    ):
        said = found(url, key)
        assert str(said).startswith("VIDBRIDGE_JUDGE_URL: no answer"), said
        assert "cret" not in said


def test_a_run_is_told_that_its_embedder_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    raw = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))

    def found(model: str, stage: str = "evaluate@base", **changes: str) -> list[str]:
        likeness = {"kind": "sentence_transformers", "model": model, "revision": "0123abc"}
        (tmp_path / "params.yaml").write_text(
            yaml.safe_dump(raw | {"rewards": raw["rewards"] | {"embedder": likeness}})
        )
        meta = StageMeta(kind="evaluate", retries=0, timeout_s=1, warm=False)
        plan = Plan("summary", (PlanStep(stage, "will run", (), (), (), meta),))
        return [str(one) for one in problems(Session(tmp_path), plan) if one.field == "rewards.embedder.model"]

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (said,) = found("nobody/has-this")
    assert "'0123abc' is not in the cache, and HF_HUB_OFFLINE is set; unset it once" in said
    assert found("nobody/has-this", "synthesize") == found("here") == []
    kept = tmp_path / "hub/models--nobody--has-this/snapshots/0123abc"
    kept.mkdir(parents=True)
    (kept / "modules.json").write_text("[]")
    with monkeypatch.context() as there:
        there.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        assert found("nobody/has-this") == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert found("nobody/has-this") == []
    (said,) = found("no/such/folder")
    assert "is not a folder and not a name on the hub" in said


def test_a_run_is_told_that_its_engine_cannot_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_bytes(RECIPE.read_bytes())
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as taken:  # a port that nobody answers at
        gone = f"http://127.0.0.1:{taken.server_port}"

    def found(engine: str, stage: str) -> list[str]:
        monkeypatch.setenv("VIDBRIDGE_ROLLOUT_ENGINE", engine)
        plan = Plan(stage, (PlanStep(stage, "will run", (), (), (), StageMeta()),))
        said = [f"{one.field}: {one.problem}" for one in problems(Session(tmp_path), plan)]
        return [one for one in said if "engine" in one.lower()]

    monkeypatch.setenv("VIDBRIDGE_ENGINE_ENV", str(tmp_path / "none"))
    assert found("hf", "grpo@bridge") == found("vllm", "sft@cold-start") == []
    for stage in ("grpo@bridge", "evaluate@base", "difficulty@bridge"):
        (said,) = found("vllm", stage)
        assert said.startswith("VIDBRIDGE_ENGINE_ENV: ")
        assert "none/bin/python does not exist" in said
    (said,) = found(gone, "evaluate@base")
    assert said.startswith(f"{gone}: no engine answers there")
    assert services.check_engine(tmp_path).state == "missing"
    monkeypatch.setenv("VIDBRIDGE_ROLLOUT_ENGINE", "")
    assert services.check_engine(tmp_path).state == "ok"


@pytest.mark.parametrize(
    ("deepspeed", "lora", "per_checkpoint", "per_state"),
    # Weights as they are saved, and of a state the optimiser's part: float32 masters and moments.
    # Adapters are small.
    [("", False, 4, 8), ("zero2.json", False, 2, 12), ("", True, 2, 0), ("zero2.json", True, 2, 0)],
)
def test_a_full_row_needs_room_for_its_masters_and_states(
    deepspeed: str, lora: bool, per_checkpoint: int, per_state: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = yaml.safe_load((RECIPE.parent / "vidbridge-r1.yaml").read_text(encoding="utf-8"))
    name, row = next(iter(raw["grpo"].items()))
    adapters = {"rank": 8, "alpha": 16, "dropout": 0.0, "targets": ["q_proj"]}
    raw["grpo"] = {
        name: {**row, "steps": 300, "save_steps": 100, "precision": "bf16", "lora": adapters if lora else None}
    }
    monkeypatch.setenv("VIDBRIDGE_DEEPSPEED", deepspeed)
    written = 7 * (
        4 * 2 * per_checkpoint + 3 * per_state
    )  # billions of bytes: each checkpoint twice, two states and a third
    assert disk_need_gb(parse_params(raw), [f"grpo@{name}"]) == pytest.approx(1.0 + written)


def test_a_watched_cold_start_needs_the_judge_s_model(tmp_path: Path) -> None:
    raw = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    raw["judge"] = {"kind": "entailment", "model": str(tmp_path / "none"), "revision": "1", "threshold": 0.5}
    raw["judge"]["max_unavailable"] = 0.0
    watch = {"every": 550, "samples_per_task": 4, "max_new_tokens": 8, "sampled": None, "keep": "last"}
    watch |= {"judge": raw["judge"], "rewards": raw["rewards"], "own_tasks": None}
    plan = Plan("sft@cold-start", (PlanStep("sft@cold-start", "will run", (), (), (), StageMeta()),))

    def found() -> list[str]:
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
        return [str(one) for one in problems(Session(tmp_path), plan) if one.field.startswith("judge")]

    assert found() == []
    raw["sft"]["cold-start"]["watch"] = watch
    (problem,) = found()
    assert str(tmp_path / "none") in problem


def test_a_writer_needs_the_endpoint_when_samples_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    monkeypatch.delenv("VIDBRIDGE_JUDGE_URL", raising=False)
    monkeypatch.delenv("VIDBRIDGE_WRITER_URL", raising=False)
    assert endpoints(parse_params(raw), judged=True, written=True) == {}
    author = {"model": "author", "revision": "r1", "temperature": 0.7, "max_tokens": 300, "seed": 0, "tries": 2}
    raw["synthesize"]["writer"] = {**author, "questions": True, "traces": None, "events": None}
    params = parse_params(raw)
    assert endpoints(params, judged=True, written=False) == {}
    assert endpoints(params, judged=False, written=True) == {"JUDGE": "synthesize.writer is on"}
    (said,) = judge_problems("JUDGE", "synthesize.writer is on")
    assert str(said).startswith("VIDBRIDGE_JUDGE_URL: not set, and synthesize.writer is on; set it to the endpoint")
    monkeypatch.setenv("VIDBRIDGE_WRITER_URL", "http://127.0.0.1:1/v1")
    assert endpoints(params, judged=False, written=True) == {"WRITER": "synthesize.writer is on"}
    (said,) = judge_problems("WRITER", "synthesize.writer is on")
    assert str(said).startswith("VIDBRIDGE_WRITER_URL: no answer")
