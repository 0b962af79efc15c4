"""The gate's rules, and the alias it moves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import mlflow
import pytest
import yaml
from rich.console import Console

from flows.console import registry
from stages.domain.rl.gauges import GAUGES
from stages.domain.statistics.paired import Comparison, SampleScore, compare
from stages.params import GateParams, GaugeLimits, GaugeName, ParamsError, load_params, parse_params
from stages.tracking.gate.promote import add_scores, champion_to_rescore, history, load_checkpoint, promote, rollback
from stages.tracking.gate.rules import HELD_OUT_BLANK, Evidence, decide
from stages.tracking.lineage.uri import TrackingError, tracking_uri
from stages.tracking.registry.compare import compare_pair, pair
from stages.tracking.registry.explain import explain
from stages.tracking.registry.register import register
from stages.tracking.registry.score_cards import Baselines, ScoreCard, TaskScore, parse_baselines, parse_scores
from stages.tracking.runs.store import open_client
from tests.support.checkout import ROOT

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
        ({"gauges": {"last": 5, "unmeasured": "refuse", "at_most": {"enumerations": 0.1}}}, "gate.gauges.at_most.enumerations"),
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
        ({"enumeration": [0.0, 0.1, 0.14]}, True, "allow", "gauge enumeration: 0.1200 against 0.1000.*list several: not met"),
        ({}, True, "refuse", r"gauge enumeration: not measured.*in its training \(gate.gauges.unmeasured: refuse\): not met"),
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
        assert any("not measured" in reason for reason in decision.reasons), "a gauge without a value is said, never left out"


def test_a_gauge_at_its_mark_passes_whatever_rounding_adds() -> None:
    gate = GATE.model_copy(update={"gauges": GaugeLimits(last=3, unmeasured="refuse", at_most={"enumeration": 0.1})})
    values = [0.1, 0.1, 0.1]
    assert sum(values) / 3 > 0.1, "but for rounding it is"
    for gauges, passes in ((values, True), ([0.1, 0.1, 0.11], False)):
        decision = decide(card(0.6, a=0.6), card(0.5, a=0.5), gate, BASELINES, Evidence({"enumeration": gauges}, True, "none"))
        assert decision.promote == passes, decision.reasons


def test_what_a_black_video_earns_is_a_gauge_too() -> None:
    gate = GATE.model_copy(update={"gauges": GaugeLimits(last=1, unmeasured="refuse", at_most={"held_out_blank_video": 0.5})})

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


def alias(project: Path, name: str = "champion") -> int | None:
    number = open_client(project).get_registered_model("vidbridge-tiny").aliases.get(name)
    return int(number) if number else None


def test_from_the_first_champion_to_the_second_and_back(
    project: Path, repro: Callable[[Path], None], save: Callable[[Path, str], str]
) -> None:
    edit_gate(project, "production: null", "production: vidbridge-live")
    register(project)
    first = promote(project, author="ann", reason="first")
    assert live(project) == (7, "ann", "first")
    again = promote(project, first.candidate.number)
    assert (again.moved, again.decision.reasons) == (False, ("version 7 is champion already",))
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

    assert live(project) == (13, "bob", "better")
    assert "compared with version 7" in (explain(project, 13).version.verdict or "")
    assert explain(project, 13).copies == ("vidbridge-live version 2",)

    back = rollback(project, author="eve", reason="too slow")
    assert (back.candidate.number, alias(project)) == (7, 7)
    assert live(project) == (7, "eve", "too slow")
    tags = explain(project, 13).version.tags
    assert (tags["vidbridge.rolled_back_by"], tags["vidbridge.rolled_back_because"]) == ("eve", "too slow")
    decided = [(entry.decided.action, entry.decided.version, entry.decided.previous, entry.done) for entry in history(project)]
    assert decided == [
        ("promote", 7, None, True),
        ("refuse", 5, 7, False),
        ("refuse", 13, 7, False),
        ("promote", 13, 7, True),
        ("rollback", 7, 13, True),
    ]
    assert [entry.decided.author for entry in history(project) if entry.moves] == ["ann", "bob", "eve"]
    with pytest.raises(TrackingError, match="is the first champion"):
        rollback(project)
    assert promote(project, "candidate").moved
    assert alias(project) == 13


def edit_gate(project: Path, old: str, new: str) -> None:
    text = (project / "params.yaml").read_text()
    assert old in text
    (project / "params.yaml").write_text(text.replace(old, new))


def live(project: Path) -> tuple[int, str, str]:
    """Which version the production model's champion is a copy of, and who made it that, and why. Its weights are read."""
    client = open_client(project)
    copy = client.get_model_version_by_alias("vidbridge-live", "champion")
    model, number = copy.tags["vidbridge.copy_of"].split("/")
    original = client.get_model_version(model, number)
    assert copy.source == original.source
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracking_uri(project))
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/vidbridge-live/{copy.version}"))
    assert json.loads((folder / "config.json").read_text()) == json.loads(
        (load_checkpoint(project, int(number)) / "config.json").read_text()
    )
    return int(number), copy.tags["vidbridge.promoted_by"], copy.tags["vidbridge.reason"]


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
    assert "; compared with version 7." in refused.verdict
    forced = promote(project, new_evaluation=True)
    assert forced.moved
    assert "; not compared with the champion, version 7, since the evaluation was said to be new." in forced.verdict
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
        add_scores(project, champion, "d2", card(0.9, "d3").model_dump_json(), "")
    add_scores(project, champion, "d2", card(0.75, "d2").model_dump_json(), by_sample(15))
    assert champion_to_rescore(project) is None
    refused = promote(project)
    assert not refused.moved
    assert "mean: 0.7000 against 0.7500" in " ".join(refused.decision.reasons)
    assert "-0.0500 [" in refused.verdict, "the samples of both were at hand, the champion's from the run that scored it again"
    asked = pair(project, "candidate", "champion")
    assert (asked.digest, asked.to_rescore) == ("d2", None)
    compared = compare_pair(project, asked, load_params(project / "params.yaml")).mean
    assert (compared.won, compared.lost, compared.tied) == (0, 2, 38)
    add_scores(project, champion, "d2", card(0.6, "d2").model_dump_json(), by_sample(12))
    assert promote(project).moved


def by_sample(right: int) -> str:
    """Scores by sample of a version that has so many of each task's twenty samples right."""
    rows = [
        SampleScore(sample_id=f"{task}/{n}", clips=(f"clip-{n}",), task=task, value=float(n < right))
        for task in ("caption", "mcqa")
        for n in range(20)
    ]
    return "".join(row.model_dump_json() + "\n" for row in rows)


def test_a_gauge_above_its_mark_refuses_what_scores_better(project: Path) -> None:
    register(project)
    assert promote(project, 5).moved
    # Logged 0.01 at step 1 up to 0.10 at step 10: 0.08 over the last five.
    edit_gate(project, "length_reward_correlation: 0.5", "length_reward_correlation: 0.07")
    refused = promote(project)
    assert not refused.moved
    (reason,) = refused.decision.reasons
    assert "gauge length_reward_correlation: 0.0800 against 0.0700" in reason
    assert "longer replies of a prompt are paid better" in reason
    edit_gate(project, "last: 5", "last: 10")
    assert promote(project).moved, "0.055 over the last ten"


def test_a_version_of_before_gauges_were_kept_says_what_to_do(project: Path) -> None:
    register(project)
    client = open_client(project)
    client.delete_model_version_tag("vidbridge-tiny", "7", "vidbridge.gauges")
    refused = promote(project)
    assert all("registered before gauges were kept; run vidbridge register" in reason for reason in refused.decision.reasons)
    assert register(project).updated == (7,)
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
        registry.register_table(report),
        registry.promotion_table(promote(project, 2)),
        registry.promotion_table(promote(project, reason="[red]markup is data[/red]")),
        registry.history_table(history(project)),
        registry.comparison_table(
            asked := pair(project, "7", "5"), compare_pair(project, asked, load_params(project / "params.yaml")), 0.95
        ),
        registry.explanation_table(explain(project, "champion")),
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
        "+0.150",
        "refused",
        "promoted",
        "d1",
    ):
        assert words in text
