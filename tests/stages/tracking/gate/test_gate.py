"""The alias that the gate moves, on a real registry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from rich.console import Console

from flows.console import registry, show
from flows.console.documents import comparison_document, explanation_document
from stages.domain.statistics.paired import SampleScore
from stages.lib.evaluation.results import PolicyScores
from stages.tracking.gate.promote import history, promote, rollback
from stages.tracking.gate.rescore import add_scores, champion_to_rescore
from stages.tracking.lineage.uri import TrackingError, tracking_uri
from stages.tracking.registry.compare import compare_pair, find_pair
from stages.tracking.registry.explain import explain
from stages.tracking.registry.named import find_named
from stages.tracking.registry.register import register
from stages.tracking.registry.versions import load_version
from stages.tracking.runs.store import open_client
from stages.tracking.session import Session


def alias(project: Path, name: str = "champion") -> int | None:
    number = open_client(project).get_registered_model("vidbridge-tiny").aliases.get(name)
    return int(number) if number else None


def test_from_the_first_champion_to_the_second_and_back(
    project: Path, repro: Callable[[Path], None], save: Callable[[Path, str], str]
) -> None:
    edit_gate(project, "production: null", "production: vidbridge-live")
    register(Session(project))
    first = promote(Session(project), author="ann", reason="first")
    assert live(project) == (7, "ann", "first")
    again = promote(Session(project), first.candidate.number)
    assert (again.moved, again.decision.reasons) == (False, ("version 7 is champion already",))
    assert (first.moved, first.candidate.number, first.champion, alias(project)) == (True, 7, None, 7)
    assert not promote(Session(project)).moved
    worse = promote(Session(project), 5)
    assert (worse.moved, alias(project)) == (False, 7)
    assert any("mean: 0.6500 against 0.8000" in reason for reason in worse.decision.reasons), worse.decision.reasons
    with pytest.raises(TrackingError, match="is the first champion, there is no earlier one"):
        rollback(Session(project))

    (project / "rates.json").write_text("2\n")
    (project / "means.json").write_text((project / "means.json").read_text().replace("0.8", "0.9"))
    repro(project)
    register(Session(project))
    refused = promote(Session(project))
    assert not refused.moved
    assert "no commit here holds a dvc.lock with version 13" in refused.decision.reasons[0]
    save(project, "second run")
    second = promote(Session(project), author="bob", reason="better")
    assert (second.moved, second.candidate.number, alias(project)) == (True, 13, 13)

    assert live(project) == (13, "bob", "better")
    assert "compared with version 7" in (explain(Session(project), 13).version.verdict or "")
    assert explain(Session(project), 13).copies == ("vidbridge-live version 2",)

    back = rollback(Session(project), author="eve", reason="too slow")
    assert (back.candidate.number, alias(project)) == (7, 7)
    assert live(project) == (7, "eve", "too slow")
    tags = explain(Session(project), 13).version.tags
    assert (tags["vidbridge.rolled_back_by"], tags["vidbridge.rolled_back_because"]) == ("eve", "too slow")
    decided = [
        (entry.decided.action, entry.decided.version, entry.decided.previous, entry.done)
        for entry in history(Session(project))
    ]
    assert decided == [
        ("promote", 7, None, True),
        ("refuse", 5, 7, False),
        ("refuse", 13, 7, False),
        ("promote", 13, 7, True),
        ("rollback", 7, 13, True),
    ]
    assert [entry.decided.author for entry in history(Session(project)) if entry.moves] == ["ann", "bob", "eve"]
    with pytest.raises(TrackingError, match="is the first champion"):
        rollback(Session(project))
    assert promote(Session(project), "candidate").moved
    assert alias(project) == 13


def edit_gate(project: Path, old: str, new: str) -> None:
    text = (project / "params.yaml").read_text()
    assert old in text
    (project / "params.yaml").write_text(text.replace(old, new))


def live(project: Path) -> tuple[int, str, str]:
    """Return which version the production model's champion copies, its author and the reason. Its
    weights are read."""
    client = open_client(project)
    copy = client.get_model_version_by_alias("vidbridge-live", "champion")
    model, number = copy.tags["vidbridge.copy_of"].split("/")
    original = client.get_model_version(model, number)
    assert copy.source == original.source
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracking_uri(project))
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/vidbridge-live/{copy.version}"))
    assert json.loads((folder / "config.json").read_text()) == json.loads(
        (load_version(project, find_named(Session(project), number)) / "config.json").read_text()
    )
    return int(number), copy.tags["vidbridge.promoted_by"], copy.tags["vidbridge.reason"]


def another_evaluation(
    project: Path, repro: Callable[[Path], None], save: Callable[[Path, str], str], mean: str
) -> None:
    """A new candidate with this mean score, under the evaluation d2."""
    (project / "rates.json").write_text("2\n")
    (project / "means.json").write_text((project / "means.json").read_text().replace("d1", "d2").replace("0.8", mean))
    repro(project)
    save(project, "new test split")
    register(Session(project))


def test_another_evaluation_is_not_compared_unless_one_says_it_is_new(
    project: Path, repro: Callable[[Path], None], save: Callable[[Path, str], str]
) -> None:
    register(Session(project))
    promote(Session(project))
    another_evaluation(project, repro, save, "0.3")
    refused = promote(Session(project))
    assert (refused.moved, alias(project)) == (False, 7)
    assert "different evaluations (d1 and d2" in refused.decision.reasons[0]
    assert "; compared with version 7." in refused.verdict
    forced = promote(Session(project), new_evaluation=True)
    assert forced.moved
    assert "; not compared with the champion, version 7, since the evaluation was said to be new." in forced.verdict
    assert alias(project) == 13


def test_a_champion_scored_again_under_the_new_evaluation_is_compared(
    project: Path, repro: Callable[[Path], None], save: Callable[[Path, str], str]
) -> None:
    register(Session(project))
    assert champion_to_rescore(Session(project)) is None, "there is no champion"
    promote(Session(project))
    assert champion_to_rescore(Session(project)) is None, "the candidate is the champion"
    another_evaluation(project, repro, save, "0.7")
    found = champion_to_rescore(Session(project))
    assert found is not None
    champion, digest = found
    assert (champion.number, digest) == (7, "d2")
    with pytest.raises(TrackingError, match="scored under evaluation d3, the candidate under d2"):
        add_scores(Session(project), champion, "d2", table(0.9, "d3"), "")
    add_scores(Session(project), champion, "d2", table(0.75, "d2"), by_sample(15))
    assert champion_to_rescore(Session(project)) is None
    refused = promote(Session(project))
    assert not refused.moved
    assert "mean: 0.7000 against 0.7500" in " ".join(refused.decision.reasons)
    assert "-0.0500 [" in refused.verdict, (
        "the samples of both were at hand, the champion's from the run that scored it again"
    )
    asked = find_pair(Session(project), "candidate", "champion")
    assert (asked.digest, asked.to_rescore) == ("d2", None)
    compared = compare_pair(Session(project), asked, 0.95).mean
    assert (compared.won, compared.lost, compared.tied) == (0, 2, 38)
    add_scores(Session(project), champion, "d2", table(0.6, "d2"), by_sample(12))
    assert promote(Session(project)).moved


def table(mean: float, digest: str) -> str:
    """Output of `rescore`."""
    return PolicyScores(
        row="r",
        digest=digest,
        split="test",
        samples=40,
        mean=mean,
        blank_mean=0.1,
        shuffled_mean=0.2,
        format=1.0,
        tasks={},
    ).model_dump_json()


def by_sample(right: int) -> str:
    """Scores by sample of a version that has so many of each task's twenty samples right."""
    rows = [
        SampleScore(sample_id=f"{task}/{n}", clips=(f"clip-{n}",), task=task, value=float(n < right))
        for task in ("caption", "mcqa")
        for n in range(20)
    ]
    return "".join(row.model_dump_json() + "\n" for row in rows)


def test_a_gauge_above_its_mark_refuses_what_scores_better(project: Path) -> None:
    register(Session(project))
    assert promote(Session(project), 5).moved
    # Logged 0.01 at step 1 up to 0.10 at step 10: 0.08 over the last five.
    edit_gate(project, "length_reward_correlation: 0.5", "length_reward_correlation: 0.07")
    refused = promote(Session(project))
    assert not refused.moved
    (reason,) = refused.decision.reasons
    assert "gauge length_reward_correlation: 0.0800 against 0.0700" in reason
    assert "longer replies of a prompt are paid better" in reason
    edit_gate(project, "last: 5", "last: 10")
    assert promote(Session(project)).moved, "0.055 over the last ten"


def test_a_version_of_before_gauges_were_kept_says_what_to_do(project: Path) -> None:
    register(Session(project))
    client = open_client(project)
    client.delete_model_version_tag("vidbridge-tiny", "7", "vidbridge.gauges")
    refused = promote(Session(project))
    assert [
        reason
        for reason in refused.decision.reasons
        if "registered before gauges were kept; run vidbridge register" not in reason
    ] == []
    assert register(Session(project)).updated == (7,)
    assert promote(Session(project)).moved


def test_an_alias_moved_by_hand_is_not_rolled_back(project: Path) -> None:
    register(Session(project))
    promote(Session(project))
    open_client(project).set_registered_model_alias("vidbridge-tiny", "champion", "3")
    with pytest.raises(TrackingError, match="moved outside the gate"):
        rollback(Session(project))


def test_a_version_without_scores_is_refused_and_an_unknown_one_named(project: Path) -> None:
    with pytest.raises(TrackingError, match="none is registered yet"):
        promote(Session(project))
    register(Session(project))
    assert "version 6 has no scores" in promote(Session(project), 6).decision.reasons[0]
    with pytest.raises(TrackingError, match=r"no version '99' \(latest: 1, .*7 \(candidate\)\)"):
        promote(Session(project), 99)
    with pytest.raises(TrackingError, match=r"no version 'champion'.*run vidbridge promote"):
        explain(Session(project), "champion")


def test_everything_can_be_shown(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = register(Session(project))
    console = Console(width=140, record=True)
    for shown in (
        registry.register_table(report),
        registry.promotion_table(promote(Session(project), 2)),
        registry.promotion_table(promote(Session(project), reason="[red]markup is data[/red]")),
        registry.history_table(history(Session(project))),
        registry.comparison_table(
            asked := find_pair(Session(project), "7", "5"), compare_pair(Session(project), asked, 0.95), 0.95
        ),
        registry.explanation_table(explain(Session(project), "champion")),
    ):
        console.print(shown)
    found = compare_pair(Session(project), asked, 0.95)
    capsys.readouterr()
    show.document(
        [comparison_document(asked, found, 0.95), explanation_document(explain(Session(project), "champion"))]
    )
    compared, explained = json.loads(capsys.readouterr().out)
    assert (compared["after"], compared["before"], compared["mean"]["mean"]) == (7, 5, found.mean.mean)
    assert (explained["version"], explained["aliases"], explained["scores"]["mean"]) == (
        7,
        ["candidate", "champion"],
        0.8,
    )
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
