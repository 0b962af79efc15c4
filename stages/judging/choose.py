"""The judge that ``params.yaml`` names."""

from __future__ import annotations

from stages.domain.rewards import Judge
from stages.judging.endpoint import EndpointJudge
from stages.judging.place import Role, place
from stages.judging.rule import RuleJudge
from stages.params import JudgeParams, RuleJudgeParams


def judge_of(params: JudgeParams, role: Role = "JUDGE") -> Judge:
    """Raises:
    JudgeError: the judge is an endpoint, and the environment does not say where it is.
    """
    if isinstance(params, RuleJudgeParams):
        return RuleJudge(full_share=params.full_share, partial_share=params.partial_share)
    return EndpointJudge(params, place(role=role))
