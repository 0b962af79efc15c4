"""Samples of every task, and judges at the test's endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from builders import SETTINGS, clip
from judge_server import JudgeServer

from stages.domain.core.records import TASK_NAMES, Sample
from stages.domain.tasks.synthesis import synthesise
from stages.lib.judging.endpoint import EndpointJudge
from stages.params import OpenAIJudgeParams
from stages.runtime.endpoints import place

CLIPS = [clip(0), clip(1, "blue", "circle", ("falls", "shrinks"))]
SAMPLES: dict[str, Sample] = {
    task: next(s for _, samples, _ in synthesise(CLIPS, task, SETTINGS, 8, 7) for s in samples) for task in TASK_NAMES
}


def judge_params(**changes: Any) -> OpenAIJudgeParams:
    values = {
        "kind": "openai",
        "model": "referee",
        "revision": "r1",
        "temperature": 0.0,
        "max_tokens": 200,
        "seed": 0,
        "max_unavailable": 0.25,
    }
    return OpenAIJudgeParams.model_validate({**values, **changes})


def endpoint_judge(server: JudgeServer, folder: Path, environ: dict[str, str] | None = None, **changes: Any) -> EndpointJudge:
    """A judge with the cache in ``folder``, one second an attempt and two retries unless ``environ`` says otherwise."""
    usual = {"VIDBRIDGE_JUDGE_CACHE": str(folder / "judge"), "VIDBRIDGE_JUDGE_TIMEOUT_S": "1", "VIDBRIDGE_JUDGE_RETRIES": "2"}
    return EndpointJudge(judge_params(**changes), place(server.environment(**{**usual, **(environ or {})})))
