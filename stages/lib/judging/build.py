"""Construction of the judge and the embedder that ``params.yaml`` names."""

from __future__ import annotations

from dataclasses import replace

from stages.domain.tasks.rewards import Embedder, Judge, LexicalLikeness, Likeness, Referee
from stages.lib.judging.embedder import LexicalEmbedder, load_embedder
from stages.lib.judging.endpoint import EndpointJudge
from stages.lib.judging.rule import RuleJudge
from stages.params import JudgeParams, Params, RuleJudgeParams
from stages.runtime.endpoint.settings import Role, endpoint_settings


def judge_of(params: JudgeParams, role: Role = "JUDGE") -> Judge:
    """Build the judge.

    Raises:
        JudgeError: the judge is an endpoint, and the environment does not name its address.
    """
    if isinstance(params, RuleJudgeParams):
        return RuleJudge(full_share=params.full_share, partial_share=params.partial_share)
    return EndpointJudge(params, endpoint_settings(role=role))


def embedder_of(likeness: Likeness) -> Embedder:
    """Build the embedder.

    Raises:
        EmbedderError: the model cannot be loaded.
    """
    if isinstance(likeness, LexicalLikeness):
        return LexicalEmbedder()
    return load_embedder(likeness.model, likeness.revision)


def referee_of(params: Params) -> Referee:
    """Build the judge and embedder of rewards and evaluation. Models load at once, so a missing one
    fails before any work.

    Raises:
        JudgeError: the judge is an endpoint, and the environment does not name its address.
        EmbedderError: the embedder's model cannot be loaded.
    """
    return Referee(judge=judge_of(params.judge), embedder=embedder_of(params.rewards.embedder))


def held_out_of(params: Params, referee: Referee) -> Referee | None:
    """Return the referee with the judge that is held out of the rewards; None if there is none.

    Raises:
        JudgeError: that judge is an endpoint, and the environment does not name its address.
    """
    held_out = params.held_out_judge
    return None if held_out is None else replace(referee, judge=judge_of(held_out.judge, "HELD_OUT_JUDGE"))
