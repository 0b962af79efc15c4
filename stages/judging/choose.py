"""The judge that ``params.yaml`` names."""

from __future__ import annotations

from stages.domain.rewards import Judge
from stages.judging.rule import RuleJudge
from stages.params import RuleJudgeParams


def judge_of(params: RuleJudgeParams) -> Judge:
    return RuleJudge(full_share=params.full_share, partial_share=params.partial_share)
