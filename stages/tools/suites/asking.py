"""What an evaluation asks of which model: the request, and the models that can answer it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.domain.core.prompts import PromptTexts
from stages.lib.engine.process import VARIABLE, check_engine
from stages.params import Params, SampledParams
from stages.runtime.endpoint.settings import model_endpoint_settings
from stages.tools.suites.engines.endpoint import JPEG_QUALITY, MP4_CRF, EndpointModel, Form
from stages.tools.suites.engines.models import MAX_PIXELS_PER_FRAME, select_model
from stages.tools.suites.engines.questions import Load, OnAnswers, Question
from stages.tracking.registry.versions import Version
from stages.tracking.session import Session

#: Folder in that of the output with the log of an engine that was started.
ENGINE_FOLDER = "engine"
#: Asks the pending ones of the questions, and reports the answers as they arrive.
Ask = Callable[[Sequence[Question], set[Question], Load, OnAnswers], None]


@dataclass(frozen=True)
class EvaluationRequest:
    """Request for an evaluation.

    Attributes:
        videos: folder of the benchmark's videos; None for this project's own samples, whose clips
            are those of ingest.
        out: folder of all output.
        controls: number of questions that are also asked with a black and with a shuffled video;
            None: all of them.
        max_new_tokens: limit of a reply; None: that of the model or ``params.yaml``.
        batch_size: of a model that is loaded here; None: ``evaluation.batch_size``.
        sampled: replies to each question that are sampled beside the greedy one; None: none.
    """

    benchmark: str
    annotations: Path
    videos: Path | None
    out: Path
    controls: int | None
    max_new_tokens: int | None
    batch_size: int | None
    sampled: SampledParams | None = None

    @property
    def temperature(self) -> float:
        """Temperature of sampled replies; 0: there are none."""
        return self.sampled.temperature if self.sampled is not None else 0.0


@dataclass(frozen=True)
class Engine:
    """The answering model. ``identity``: everything a reply depends on beside question and frames;
    ``ask``: asks questions."""

    name: str
    identity: Mapping[str, Any]
    prompt: PromptTexts
    version: Version | None
    ask: Ask


def model_engine(
    session: Session,
    params: Params,
    request: EvaluationRequest,
    which: str,
    revision: str | None,
    drawn_by: str = "hf",
) -> Engine:
    """Engine of a model, which is loaded when the first question is asked.

    Args:
        drawn_by: ``hf`` (decoded in this process), ``vllm`` (an engine that is started here), or
            the address of a rollout engine.

    Raises:
        EngineError, TrackingError: see :func:`stages.tools.suites.engines.models.select_model`.
        EngineUnavailable, stages.lib.engine.errors.EngineError: that engine cannot be started, or
            does not answer.
    """
    check_engine({**os.environ, VARIABLE: drawn_by})
    chosen = select_model(session, params, which, revision)
    most = request.max_new_tokens or chosen.max_new_tokens
    batch_size = request.batch_size or params.evaluation.batch_size

    def ask(questions: Sequence[Question], pending: set[Question], load: Load, on_answers: OnAnswers) -> None:
        from stages.lib.engine.policy import opened_policy
        from stages.lib.models.load import use_threads
        from stages.tools.suites.engines.local import LocalModel, prepare

        use_threads()
        with opened_policy(
            chosen.folder,
            chosen.precision,
            stage="evaluate",
            load=chosen.load,
            scratch=request.out / ENGINE_FOLDER,
            prepare=prepare,
            chosen=drawn_by,
            one_kind=True,
        ) as policy:
            local = LocalModel(policy, most, params.seed, request.temperature)
            local.answer(questions, pending, load, batch_size, on_answers)

    identity = {
        "engine": "generate" if drawn_by == "hf" else "vllm",
        "model": chosen.identity,
        "decoding": {"greedy": True, "max_new_tokens": most, "precision": chosen.precision},
    }
    return Engine(chosen.name, identity, chosen.prompt, chosen.version, ask)


def endpoint_engine(
    params: Params, request: EvaluationRequest, url: str, model: str, revision: str | None, form: Form
) -> Engine:
    """Engine of a model at an endpoint, whose address is not part of the identity.

    Args:
        revision: weights or release of the endpoint's model; not sent.

    Raises:
        JudgeError: the address, or a variable of the environment, cannot be used.
    """
    place = model_endpoint_settings(url, os.environ)
    most = request.max_new_tokens or params.evaluation.max_new_tokens
    engine = EndpointModel(model, place, form, most, params.seed, request.temperature)
    quality = {"jpeg": f"JPEG, quality {JPEG_QUALITY}", "mp4": f"H.264, CRF {MP4_CRF}"}[form]
    identity = {
        "engine": "endpoint",
        "model": {"name": model, "revision": revision},
        "sent as": f"{quality}, at most {MAX_PIXELS_PER_FRAME} pixels a frame",
        "decoding": {"temperature": 0, "max_tokens": most},
    }
    return Engine(model, identity, params.prompt, None, engine.answer)
