"""The gate's parameters, and scores by hand to put before it."""

from __future__ import annotations

from stages.params import GateParams, GaugeLimits
from stages.tracking.gate.rules import Evidence
from stages.tracking.registry.score_cards import Baselines, ScoreCard, TaskScore

GATE = GateParams(
    registered_model="m",
    production=None,
    scores="all",
    min_gain=0.02,
    significant=False,
    max_task_drop=0.05,
    min_format=0.95,
    min_over_baselines=0.0,
    gauges=GaugeLimits(last=2, unmeasured="refuse", at_most={}),
)
NOTHING = Evidence(gauges={}, rolls_out=True, paired="nothing was kept by sample")
BASELINES = Baselines(digest="d1", means={"random": 0.1, "constant": 0.2})


def card(mean: float, digest: str = "d1", parsed: float = 1.0, **tasks: float) -> ScoreCard:
    scores = {
        name: TaskScore(mean=value, low=value, high=value, samples=10, format=1.0) for name, value in tasks.items()
    }
    return ScoreCard(row="r", digest=digest, split="test", samples=20, mean=mean, format=parsed, tasks=scores)
