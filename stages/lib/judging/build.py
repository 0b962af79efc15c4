"""Construction of the judges and the embedder that ``params.yaml`` names.

:data:`KINDS` lists them: a new kind is a type in :mod:`stages.params.judging`, whose traits checks
and plans ask for, and a line here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from stages.domain.tasks.rewards import Embedder, Judge, LexicalLikeness, Likeness, Referee
from stages.lib.judging.embedder import LexicalEmbedder, load_embedder
from stages.lib.judging.endpoint import EndpointJudge
from stages.lib.judging.entailment import EntailmentJudge, load_inference
from stages.lib.judging.local import MeasuredPairs
from stages.lib.judging.rule import RuleJudge
from stages.lib.judging.similarity import SimilarityJudge, load_cosine
from stages.params import (
    EntailmentJudgeParams,
    JudgeParams,
    KindOfJudge,
    OneJudgeParams,
    OpenAIJudgeParams,
    Params,
    PlacedJudge,
    RuleJudgeParams,
    SimilarityJudgeParams,
    placed_judges,
)
from stages.runtime.endpoint.settings import answers_folder, endpoint_settings


class Kind(NamedTuple):
    """A kind of judge: its class, and the arguments of it from the table and its place."""

    judge: Callable[..., Judge]
    arguments: Callable[[Any, PlacedJudge], tuple[Any, ...]]


def _endpoint(params: OpenAIJudgeParams, place: PlacedJudge) -> tuple[Any, ...]:
    return params, endpoint_settings(role=place.role, field=place.field), place.field


def _similarity(params: SimilarityJudgeParams, place: PlacedJudge) -> tuple[Any, ...]:
    return params, MeasuredPairs(load_cosine(params, place.field), answers_folder(os.environ))


def _entailment(params: EntailmentJudgeParams, place: PlacedJudge) -> tuple[Any, ...]:
    return params, MeasuredPairs(load_inference(params, place.field), answers_folder(os.environ))


#: The kinds of judges, by the type of their table.
KINDS: Mapping[type[KindOfJudge], Kind] = {
    RuleJudgeParams: Kind(RuleJudge, lambda params, _: (params.full_share, params.partial_share)),
    OpenAIJudgeParams: Kind(EndpointJudge, _endpoint),
    SimilarityJudgeParams: Kind(SimilarityJudge, _similarity),
    EntailmentJudgeParams: Kind(EntailmentJudge, _entailment),
}


def judge_of(params: OneJudgeParams, place: PlacedJudge | None = None) -> Judge:
    """Build one judge. Its model loads at once, so a missing one fails before any work.

    Args:
        place: its place in ``params.yaml``; None: ``judge``.

    Raises:
        JudgeError: the environment does not name its endpoint's address, or its model cannot be
            loaded.
    """
    return KINDS[type(params)].judge(*arguments_of(params, place))


def arguments_of(params: OneJudgeParams, place: PlacedJudge | None = None) -> tuple[Any, ...]:
    """Build the arguments of a judge's class; raises as :func:`judge_of` does."""
    return KINDS[type(params)].arguments(params, place or PlacedJudge("judge", "judge", params, ()))


def embedder_of(likeness: Likeness) -> Embedder:
    """Build the embedder.

    Raises:
        EmbedderError: the model cannot be loaded.
    """
    if isinstance(likeness, LexicalLikeness):
        return LexicalEmbedder()
    return load_embedder(likeness.model, likeness.revision)


def judges_of(params: JudgeParams, embedder: Embedder, name: str = "judge", field: str = "judge") -> Referee:
    """Build the judges of a table, and the referee that gives each task its own.

    Raises:
        JudgeError: see :func:`judge_of`.
    """
    (first, *others) = [(place, judge_of(place.params, place)) for place in placed_judges(params, name, field)]
    return Referee(first[1], embedder, {task: judge for place, judge in others for task in place.tasks})


def referee_of(params: Params) -> Referee:
    """Build the judges and the embedder of rewards and evaluation.

    Raises:
        JudgeError: see :func:`judge_of`.
        EmbedderError: the embedder's model cannot be loaded.
    """
    return judges_of(params.judge, embedder_of(params.rewards.embedder))


def held_out_of(params: Params, referee: Referee) -> Referee | None:
    """Build the referee with the judges that are held out of the rewards; None if there are none.

    Raises:
        JudgeError: see :func:`judge_of`.
    """
    held_out = params.held_out_judge
    if held_out is None:
        return None
    return judges_of(held_out.judge, referee.embedder, "held_out_judge", "held_out_judge.judge")
