"""Judges at the test's endpoint, and their parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from stages.lib.judging.endpoint import EndpointJudge
from stages.params import OpenAIJudgeParams
from stages.runtime.endpoint.settings import endpoint_settings
from tests.support.judges.server import JudgeServer

JudgeT = TypeVar("JudgeT", bound=EndpointJudge)


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


def endpoint_judge(
    server: JudgeServer,
    folder: Path,
    environ: dict[str, str] | None = None,
    kind: type[JudgeT] = EndpointJudge,
    **changes: Any,
) -> JudgeT:
    """A judge with the cache in ``folder``, half a minute an attempt and two retries unless
    ``environ`` says otherwise."""
    usual = {
        "VIDBRIDGE_JUDGE_CACHE": str(folder / "judge"),
        "VIDBRIDGE_JUDGE_TIMEOUT_S": "30",
        "VIDBRIDGE_JUDGE_RETRIES": "2",
    }
    return kind(judge_params(**changes), endpoint_settings(server.environment(**{**usual, **(environ or {})})))
