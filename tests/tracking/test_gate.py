"""The gate's rules, and the alias it moves."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from stages.params import GateParams
from stages.tracking import render
from stages.tracking.explain import explain
from stages.tracking.gate import add_scores, champion_to_rescore, decide, history, promote, rollback
from stages.tracking.registry import register
from stages.tracking.scores import Baselines, ScoreCard, TaskScore, parse_baselines, parse_scores
from stages.tracking.store import open_client
from stages.tracking.uri import TrackingError

GATE = GateParams(registered_model="m", min_gain=0.02, max_task_drop=0.05, min_format=0.95, min_over_baselines=0.0)
BASELINES = Baselines(digest="d1", means={"random": 0.1, "constant": 0.2})


def card(mean: float, digest: str = "d1", parsed: float = 1.0, **tasks: float) -> ScoreCard:
    scores = {name: TaskScore(mean=value, low=value, high=value, samples=10, format=1.0) for name, value in tasks.items()}
    return ScoreCard(row="r", digest=digest, split="test", samples=20, mean=mean, format=parsed, tasks=scores)


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
    decision = decide(candidate, champion, GATE, BASELINES)
    assert decision.promote == (said is None)
    assert decision.reasons
    if said:
        (reason,) = decision.reasons
        assert re.search(said, reason)


def test_without_baselines_nobody_is_first() -> None:
    decision = decide(card(0.9), None, GATE, None)
    assert not decision.promote
    assert "run the stage `baselines`" in decision.reasons[0]


def test_damaged_scores_are_named() -> None:
    with pytest.raises(TrackingError, match=r"scores/x.json: digest: .*evaluate this row again"):
        parse_scores('{"row": "x"}', "scores/x.json")
    with pytest.raises(TrackingError, match="evaluate the baselines again"):
        parse_baselines("{}", "scores/baselines/scores.json")


def alias(project: Path, name: str = "champion") -> int | None:
    number = open_client(project).get_registered_model("vidbridge-tiny").aliases.get(name)
    return int(number) if number else None


def test_from_the_first_champion_to_the_second_and_back(
    project: Path, repro: Callable[[Path], None], save: Callable[[Path, str], str]
) -> None:
    register(project)
    first = promote(project, author="ann", reason="first")
    assert (first.moved, first.candidate.number, first.champion, alias(project)) == (True, 7, None, 7)
    assert not promote(project).moved
    worse = promote(project, 5)
    assert (worse.moved, alias(project)) == (False, 7)
    assert any("mean: 0.6500 against 0.8000" in reason for reason in worse.decision.reasons)
    with pytest.raises(TrackingError, match="is the first champion, there is no earlier one"):
        rollback(project)

    (project / "rates.json").write_text("2\n")
    (project / "means.json").write_text((project / "means.json").read_text().replace("0.8", "0.9"))
    repro(project)
    register(project)
    refused = promote(project)
    assert not refused.moved
    assert "no commit here holds a dvc.lock with version 13" in refused.decision.reasons[0]
    save(project, "second run")
    second = promote(project, author="bob", reason="better")
    assert (second.moved, second.candidate.number, alias(project)) == (True, 13, 13)

    back = rollback(project, author="eve", reason="too slow")
    assert (back.candidate.number, alias(project)) == (7, 7)
    assert [(event.action, event.version, event.previous, event.author) for event in history(project)] == [
        ("promote", 7, None, "ann"),
        ("promote", 13, 7, "bob"),
        ("rollback", 7, 13, "eve"),
    ]
    with pytest.raises(TrackingError, match="is the first champion"):
        rollback(project)
    assert promote(project, "candidate").moved
    assert alias(project) == 13


def another_evaluation(project: Path, repro: Callable[[Path], None], save: Callable[[Path, str], str], mean: str) -> None:
    """A new candidate with this mean score, under the evaluation d2."""
    (project / "rates.json").write_text("2\n")
    (project / "means.json").write_text((project / "means.json").read_text().replace("d1", "d2").replace("0.8", mean))
    repro(project)
    save(project, "new test split")
    register(project)


def test_another_evaluation_is_not_compared_unless_one_says_it_is_new(
    project: Path, repro: Callable[[Path], None], save: Callable[[Path, str], str]
) -> None:
    register(project)
    promote(project)
    another_evaluation(project, repro, save, "0.3")
    refused = promote(project)
    assert (refused.moved, alias(project)) == (False, 7)
    assert "different evaluations (d1 and d2" in refused.decision.reasons[0]
    assert promote(project, new_evaluation=True).moved
    assert alias(project) == 13


def test_a_champion_scored_again_under_the_new_evaluation_is_compared(
    project: Path, repro: Callable[[Path], None], save: Callable[[Path, str], str]
) -> None:
    register(project)
    assert champion_to_rescore(project) is None, "there is no champion"
    promote(project)
    assert champion_to_rescore(project) is None, "the candidate is the champion"
    another_evaluation(project, repro, save, "0.7")
    found = champion_to_rescore(project)
    assert found is not None
    champion, digest = found
    assert (champion.number, digest) == (7, "d2")
    with pytest.raises(TrackingError, match="scored under evaluation d3, the candidate under d2"):
        add_scores(project, champion, "d2", card(0.9, "d3").model_dump_json())
    add_scores(project, champion, "d2", card(0.75, "d2").model_dump_json())
    assert champion_to_rescore(project) is None
    refused = promote(project)
    assert not refused.moved
    assert "mean: 0.7000 against 0.7500" in " ".join(refused.decision.reasons)
    add_scores(project, champion, "d2", card(0.6, "d2").model_dump_json())
    assert promote(project).moved


def test_an_alias_moved_by_hand_is_not_rolled_back(project: Path) -> None:
    register(project)
    promote(project)
    open_client(project).set_registered_model_alias("vidbridge-tiny", "champion", "3")
    with pytest.raises(TrackingError, match="moved outside the gate"):
        rollback(project)


def test_a_version_without_scores_is_refused_and_an_unknown_one_named(project: Path) -> None:
    with pytest.raises(TrackingError, match="none is registered yet"):
        promote(project)
    register(project)
    assert "version 6 has no scores" in promote(project, 6).decision.reasons[0]
    with pytest.raises(TrackingError, match=r"no version '99' \(latest: 1, .*7 \(candidate\)\)"):
        promote(project, 99)
    with pytest.raises(TrackingError, match=r"no version 'champion'.*run vidbridge promote"):
        explain(project, "champion")


def test_everything_can_be_shown(project: Path) -> None:
    report = register(project)
    console = Console(width=140, record=True)
    for shown in (
        render.register_table(report),
        render.promotion_table(promote(project, 2)),
        render.promotion_table(promote(project, reason="[red]markup is data[/red]")),
        render.history_table(history(project)),
        render.explanation_table(explain(project, "champion")),
    ):
        console.print(shown)
    text = console.export_text()
    for words in (
        "7 new",
        "refused",
        "version 7 is champion",
        "[red]markup is data[/red]",
        "grpo.general.rollouts",
        "[0.780, 0.820]",
        "d1",
    ):
        assert words in text
