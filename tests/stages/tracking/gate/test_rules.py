"""The gate's rules, on scores by hand."""

from __future__ import annotations

import re
from typing import Literal, get_args

import pytest
import yaml

from stages.domain.rl.gauges import GAUGES
from stages.domain.statistics.paired import Comparison, SampleScore, compare
from stages.params import GaugeLimits, GaugeName, ParamsError, parse_params
from stages.tracking.gate.rules import HELD_OUT_BLANK, Evidence, decide
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.score_cards import ScoreCard, TaskScore, parse_baselines, parse_scores
from tests.support.checkout import ROOT
from tests.support.tracking.gate import BASELINES, GATE, NOTHING, card


@pytest.mark.parametrize(
    ("candidate", "champion", "said"),
    [
        (card(0.6, a=0.6), card(0.5, a=0.5), None),
        (card(0.52, a=0.45), card(0.5, a=0.5), None),
        (
            card(0.51, a=0.6),
            card(0.5, a=0.5),
            r"mean: 0.5100 against 0.5000; the rule is a gain of 0.02 \(gate.min_gain\): not met",
        ),
        (card(0.6, a=0.44), card(0.5, a=0.5), "a: 0.4400 against 0.5000; the rule is a drop of 0.05 at most"),
        (card(0.6), card(0.5, a=0.5), "a: 0.0000 against 0.5000"),
        (card(0.6, parsed=0.9), card(0.5), "format: 0.9000"),
        (card(0.6, digest="d2"), card(0.5), "different evaluations"),
        (card(0.3), None, None),
        (card(0.2), None, "mean, constant baseline: 0.2000 against 0.2000; the rule is above it: not met"),
        (card(0.3, digest="d2"), None, "the baselines and the candidate were scored under different evaluations"),
    ],
)
def test_the_rules(candidate: ScoreCard, champion: ScoreCard | None, said: str | None) -> None:
    decision = decide(candidate, champion, GATE, BASELINES, NOTHING)
    assert decision.promote == (said is None)
    assert decision.reasons
    if said:
        (reason,) = decision.reasons
        assert re.search(said, reason)


def test_without_baselines_nobody_is_first() -> None:
    decision = decide(card(0.9), None, GATE, None, NOTHING)
    assert not decision.promote
    assert "run the stage `baselines`" in decision.reasons[0]


def test_only_the_tasks_named_are_compared_and_no_other_may_fall_either() -> None:
    gate = GATE.model_copy(update={"scores": ("a",)})
    better = decide(card(0.5, a=0.8, b=0.2), card(0.6, a=0.7, b=0.24), gate, BASELINES, NOTHING)
    assert better.promote
    assert "mean of a: 0.8000 against 0.7000" in better.reasons[1]
    worse = decide(card(0.5, a=0.8, b=0.1), card(0.6, a=0.7, b=0.24), gate, BASELINES, NOTHING)
    assert [reason.split(":")[0] for reason in worse.reasons] == ["b"]
    unknown = decide(card(0.5, b=0.8), card(0.6, b=0.7), gate, BASELINES, NOTHING)
    assert "gate.scores: 'a' has no score in this evaluation (it has b)" in unknown.reasons[0]
    first = decide(card(0.9, a=0.5), None, gate, BASELINES, NOTHING)
    assert "run vidbridge register" in first.reasons[0]
    by_task = BASELINES.model_copy(update={"tasks": {"a": {"random": 0.1, "constant": 0.6}}})
    assert not decide(card(0.9, a=0.5), None, gate, by_task, NOTHING).promote
    assert decide(card(0.1, a=0.7), None, gate, by_task, NOTHING).promote


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scores": ["mcqa", "mcq"]}, r"gate.scores: 'mcq' is not synthesised \(synthesize.tasks: dark_event_infer, "),
        ({"scores": []}, "gate.scores"),
        ({"production": "vidbridge-tiny"}, "production: 'vidbridge-tiny' is taken"),
        ({"production": "vidbridge-tiny.gate"}, "production: 'vidbridge-tiny.gate' is taken"),
        (
            {"gauges": {"last": 5, "unmeasured": "refuse", "at_most": {"enumerations": 0.1}}},
            "gate.gauges.at_most.enumerations",
        ),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused_at_load(change: dict[str, object], said: str) -> None:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["gate"] |= change
    with pytest.raises(ParamsError, match=said):
        parse_params(raw)


def test_every_gauge_may_be_named() -> None:
    assert set(get_args(GaugeName)) == {*GAUGES, HELD_OUT_BLANK}


WATCHED = {"enumeration": 0.1}


@pytest.mark.parametrize(
    ("gauges", "rolls_out", "unmeasured", "said"),
    [
        ({"enumeration": [0.9, 0.1, 0.08]}, True, "refuse", None),
        (
            {"enumeration": [0.0, 0.1, 0.14]},
            True,
            "allow",
            "gauge enumeration: 0.1200 against 0.1000.*list several: not met",
        ),
        (
            {},
            True,
            "refuse",
            r"gauge enumeration: not measured.*in its training \(gate.gauges.unmeasured: refuse\): not met",
        ),
        ({}, True, "allow", None),
        ({}, False, "refuse", None),
        (None, True, "refuse", "registered before gauges were kept; run vidbridge register"),
    ],
)
def test_gauges_stay_below_their_marks(
    gauges: dict[str, list[float]] | None, rolls_out: bool, unmeasured: Literal["refuse", "allow"], said: str | None
) -> None:
    gate = GATE.model_copy(update={"gauges": GaugeLimits(last=2, unmeasured=unmeasured, at_most=WATCHED)})
    decision = decide(card(0.6, a=0.6), card(0.5, a=0.5), gate, BASELINES, Evidence(gauges, rolls_out, "none"))
    assert decision.promote == (said is None)
    if said:
        assert re.search(said, decision.reasons[0])
    elif not (gauges or {}):
        assert any("not measured" in reason for reason in decision.reasons), (
            "a gauge without a value is said, never left out"
        )


def test_a_gauge_at_its_mark_passes_whatever_rounding_adds() -> None:
    gate = GATE.model_copy(update={"gauges": GaugeLimits(last=3, unmeasured="refuse", at_most={"enumeration": 0.1})})
    values = [0.1, 0.1, 0.1]
    assert sum(values) / 3 > 0.1, "but for rounding it is"
    for gauges, passes in ((values, True), ([0.1, 0.1, 0.11], False)):
        decision = decide(
            card(0.6, a=0.6), card(0.5, a=0.5), gate, BASELINES, Evidence({"enumeration": gauges}, True, "none")
        )
        assert decision.promote == passes, decision.reasons


def test_what_a_black_video_earns_is_a_gauge_too() -> None:
    gate = GATE.model_copy(
        update={"gauges": GaugeLimits(last=1, unmeasured="refuse", at_most={"held_out_blank_video": 0.5})}
    )

    def with_blank(blank: float | None) -> ScoreCard:
        task = TaskScore(mean=0.6, low=0.6, high=0.6, samples=10, format=1.0, blank=blank)
        return card(0.6).model_copy(update={"tasks": {"a": task}})

    assert decide(with_blank(0.29), None, gate, BASELINES, NOTHING).promote
    assert "0.6000 against 0.5000" in decide(with_blank(0.36), None, gate, BASELINES, NOTHING).reasons[0]
    assert "no black video" in decide(with_blank(None), None, gate, BASELINES, NOTHING).reasons[0]


def paired(wins: int, losses: int, of: int) -> Comparison:
    values = [1.0] * wins + [-1.0] * losses + [0.0] * (of - wins - losses)
    after, before = (
        [SampleScore(sample_id=str(n), clips=(str(n),), task="a", value=side(value)) for n, value in enumerate(values)]
        for side in (lambda value: max(value, 0.0), lambda value: max(-value, 0.0))
    )
    return compare(after, before, confidence=0.95)


def test_where_chance_must_be_ruled_out_a_gain_alone_is_not_enough() -> None:
    strict = GATE.model_copy(update={"significant": True})
    few, many = paired(3, 1, 40), paired(12, 1, 40)
    better = card(0.6, a=0.6), card(0.5, a=0.5)
    assert decide(*better, GATE, BASELINES, Evidence({}, True, few)).promote, "shown, and no rule"
    refused = decide(*better, strict, BASELINES, Evidence({}, True, few))
    assert "gain by sample, lower end" in refused.reasons[0]
    assert "3 won, 1 lost, 36 tied" in refused.reasons[0]
    assert decide(*better, strict, BASELINES, Evidence({}, True, many)).promote
    unknown = decide(*better, strict, BASELINES, NOTHING)
    assert "not measured" in unknown.reasons[0]
    assert "nothing was kept by sample" in unknown.reasons[0]


def test_damaged_scores_are_named() -> None:
    with pytest.raises(TrackingError, match=r"scores/x.json: digest: .*evaluate this row again"):
        parse_scores('{"row": "x"}', "scores/x.json")
    with pytest.raises(TrackingError, match="evaluate the baselines again"):
        parse_baselines("{}", "scores/baselines/scores.json")
