"""One order of decisions for all machines: races, interrupted promotions, and their completion by
the next command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from flows.console.registry import history_table
from stages.params import Params, load_params
from stages.tracking.gate.judging import Case, judge
from stages.tracking.gate.moves import complete_pending_move
from stages.tracking.gate.promote import conclude, history, promote, rollback
from stages.tracking.lineage.uri import TrackingError, tracking_uri
from stages.tracking.registry.ledger import champions, last_move, read_ledger, write_entry
from stages.tracking.registry.register import register
from stages.tracking.registry.versions import all_versions, find_version
from stages.tracking.runs.store import open_client
from stages.tracking.session import Session
from tests.support.checkout import ROOT

MODEL = "vidbridge-tiny"


@pytest.fixture
def registered(project: Path) -> Path:
    """A project with seven versions whose scores grow: 1 (0.1), 3 (0.6), 5 (0.65), 7 (0.8); 3 is
    champion."""
    register(Session(project))
    assert promote(Session(project), 3, author="ann").moved
    return project


def params_of(root: Path) -> Params:
    return load_params(root / "params.yaml")


def judged(root: Path, version: int, author: str) -> Case:
    return judge(Session(root), version, author=author, reason="", new_evaluation=False)


def champion(root: Path) -> int:
    return find_version(open_client(root), MODEL, "champion").number


def shown(root: Path) -> str:
    console = Console(width=200, record=True)
    console.print(history_table(history(Session(root))))
    return console.export_text()


def test_of_two_judged_against_the_same_champion_one_wins_and_the_other_is_judged_again(registered: Path) -> None:
    gate, client = params_of(registered).gate, open_client(registered)
    ours, theirs = judged(registered, 7, "ours"), judged(registered, 5, "theirs")
    assert ours.decision.promote
    assert theirs.decision.promote
    assert conclude(client, gate, ours)
    assert not conclude(client, gate, theirs), "it was judged against a champion who is none any more"
    assert champion(registered) == 7
    again = promote(Session(registered), 5, author="theirs")
    assert not again.moved
    assert "mean: 0.6500 against 0.8000" in again.decision.reasons[0]
    last = history(Session(registered))
    assert [(entry.decided.author, entry.decided.action, entry.standing) for entry in last[-3:]] == [
        ("ours", "promote", True),
        ("theirs", "promote", False),
        ("theirs", "refuse", False),
    ]
    assert "overtaken" in shown(registered)


def test_a_rollback_that_came_too_late_moves_nothing(registered: Path) -> None:
    gate, client = params_of(registered).gate, open_client(registered)
    late = judged(registered, 5, "late")
    promote(Session(registered), 7)
    assert rollback(Session(registered)).candidate.number == 3
    # The champion is the one it was judged against, but two moves have been made since: the case is
    # outdated.
    assert not conclude(client, gate, late)
    assert champions(read_ledger(client, MODEL, gate.ledger)) == [3]


def test_a_promotion_that_was_interrupted_is_completed_by_the_next_command(registered: Path) -> None:
    text = (registered / "params.yaml").read_text()
    (registered / "params.yaml").write_text(text.replace("production: null", "production: live"))
    gate, client = params_of(registered).gate, open_client(registered)
    client.create_registered_model("live")
    case = judged(registered, 5, "ann")
    promoted = next(entry for entry in history(Session(registered)) if entry.moves)
    # The first steps of `conclude`, and then the machine goes down.
    decided = promoted.decided.__class__(
        **{
            **vars(promoted.decided),
            "version": 5,
            "previous": 3,
            "after": case.after,
            "production": "live",
            "name": "cut-off",
        }
    )
    entry = write_entry(client, gate.ledger, case.candidate, decided, "## the verdict")
    assert (entry.standing, entry.done) == (True, False)
    assert champion(registered) == 3, "the alias has not followed"
    assert "promote (unfinished)" in shown(registered)
    refused = promote(Session(registered), 1)
    assert refused.champion is not None
    assert refused.champion.number == champion(registered) == 5, "completed first, then judged against it"
    assert find_version(client, MODEL, 5).verdict == "## the verdict"
    assert find_version(client, "live", "champion").tags["vidbridge.copy_of"] == f"{MODEL}/5"
    assert [entry.done for entry in history(Session(registered)) if entry.standing] == [True, True]
    complete_pending_move(client, gate)
    assert len(all_versions(client, "live")) == 1, "a second completion copies nothing"


def test_a_decision_written_twice_by_a_broken_connection_counts_once(registered: Path) -> None:
    gate, client = params_of(registered).gate, open_client(registered)
    (first,) = history(Session(registered))
    about = find_version(client, MODEL, 3)
    again = write_entry(client, gate.ledger, about, first.decided, first.verdict)
    assert again == first
    assert history(Session(registered)) == [first]


def test_a_foreign_version_in_the_ledger_is_named(registered: Path) -> None:
    ledger = params_of(registered).gate.ledger
    open_client(registered).create_model_version(ledger, "dvc:///" + "0" * 32 + ".dir")
    with pytest.raises(
        TrackingError, match=r"vidbridge-tiny.gate version 2: tag vidbridge.entry: not a decision of the gate"
    ):
        history(Session(registered))


RACE = """
import sys, time
from pathlib import Path
from stages.params import load_params
from stages.tracking.gate.promote import promote
from stages.tracking.session import Session
root, rounds, version, meeting = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
text = (root / "params.yaml").read_text()
for turn in range(rounds):
    changed = text.replace("registered_model: vidbridge-tiny", f"registered_model: race-{turn}")
    (root / "params.yaml").write_text(changed)
    (meeting / f"{turn}-{version}").touch()
    while len(list(meeting.glob(f"{turn}-*"))) < 2:
        time.sleep(0.002)
    promote(Session(root), version, author=str(version))
"""


@pytest.mark.slow
@pytest.mark.parametrize("server", [False, True])
def test_two_machines_that_promote_at_once_never_both_replace_the_same_champion(
    registered: Path, tmp_path: Path, server: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes with folders (and lock files) of their own, one store; each round a new model
    with a champion, 1, and two that are better: 5 and 7."""
    rounds = 10
    uri = request.getfixturevalue("mlflow_server") if server else tracking_uri(registered)
    versions = all_versions(open_client(registered), MODEL)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = open_client(registered)
    text = (registered / "params.yaml").read_text()
    for turn in range(rounds):
        model = f"race-{turn}"
        client.create_registered_model(model)
        for version in versions:
            client.create_model_version(model, version.source, tags=dict(version.tags), await_creation_for=0)
        (registered / "params.yaml").write_text(
            text.replace("registered_model: vidbridge-tiny", f"registered_model: {model}")
        )
        assert promote(Session(registered), 3).moved
    (registered / "params.yaml").write_text(text)
    roots = [tmp_path / name for name in ("left", "right")]
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    processes = []
    for root, version in zip(roots, (5, 7), strict=True):
        shutil.copytree(registered, root, ignore=shutil.ignore_patterns("*.db*", "*.lock.d"))
        environment = os.environ | {"PYTHONPATH": str(ROOT), "VIDBRIDGE_PROJECT": str(root)}
        command = [sys.executable, "-c", RACE, str(root), str(rounds), str(version), str(meeting)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        for process in processes:
            _, err = process.communicate(timeout=300)
            assert process.returncode == 0, err
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    overtaken = 0
    for turn in range(rounds):
        entries = read_ledger(client, f"race-{turn}", f"race-{turn}.gate")
        moves = [entry for entry in entries if entry.standing]
        # Each replaced the one before it: none was replaced twice, none judged against another than
        # it replaced.
        assert [entry.decided.previous for entry in moves] == [None, *(entry.decided.version for entry in moves[:-1])]
        assert [entry.decided.version for entry in moves] in ([3, 5, 7], [3, 7])
        assert [entry for entry in moves if not entry.done] == []
        last = last_move(entries)
        assert last is not None
        assert find_version(client, f"race-{turn}", "champion").number == last.decided.version == 7
        overtaken += sum(entry.moves and not entry.standing for entry in entries)
    assert overtaken > 0, "they never met; the test has shown nothing"
