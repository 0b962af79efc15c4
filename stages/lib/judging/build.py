"""The judge and the embedder that ``params.yaml`` names."""

from __future__ import annotations

from dataclasses import replace

from stages.domain.tasks.rewards import Embedder, Judge, LexicalLikeness, Likeness, Referee
from stages.lib.judging.embedder import LexicalEmbedder, load_embedder
from stages.lib.judging.endpoint import EndpointJudge
from stages.lib.judging.rule import RuleJudge
from stages.params import JudgeParams, Params, RuleJudgeParams
from stages.runtime.endpoints import Role, endpoint_settings


def judge_of(params: JudgeParams, role: Role = "JUDGE") -> Judge:
    """Raises:
    JudgeError: the judge is an endpoint, and the environment does not say where it is.
    """
    if isinstance(params, RuleJudgeParams):
        return RuleJudge(full_share=params.full_share, partial_share=params.partial_share)
    return EndpointJudge(params, endpoint_settings(role=role))


def embedder_of(likeness: Likeness) -> Embedder:
    """Raises:
    EmbedderError: the model that is named cannot be had.
    """
    if isinstance(likeness, LexicalLikeness):
        return LexicalEmbedder()
    return load_embedder(likeness.model, likeness.revision)


def referee_of(params: Params) -> Referee:
    """Whom rewards and evaluation ask. A model that it needs is loaded at once: what is missing is said before any work is done.

    Raises:
        JudgeError: the judge is an endpoint, and the environment does not say where it is.
        EmbedderError: the embedder's model cannot be had.
    """
    return Referee(judge=judge_of(params.judge), embedder=embedder_of(params.rewards.embedder))


def held_out_of(params: Params, referee: Referee) -> Referee | None:
    """The same with the judge that is held out of the rewards; None where there is none.

    Raises:
        JudgeError: that judge is an endpoint, and the environment does not say where it is.
    """
    chosen = params.held_out_judge
    return None if chosen is None else replace(referee, judge=judge_of(chosen.judge, "HELD_OUT_JUDGE"))
