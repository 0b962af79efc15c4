"""Rights to move the champion: proof on the model that changes, whoever owns the ledger; and
ledgers of 0.1 remain valid."""

from __future__ import annotations

import json
import shutil
import uuid
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from flows.console.registry import history_table
from stages.params import load_params
from stages.runtime.paths import DATABASE
from stages.tracking.gate.moves import complete_pending_move
from stages.tracking.gate.promote import history, promote, rollback
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.ledger import (
    DONE,
    ENTRY,
    PROOF,
    VERDICT,
    Decided,
    alias_fault,
    champions,
    now_ms,
    read_ledger,
    write_entry,
)
from stages.tracking.registry.production import COPY_OF, publish
from stages.tracking.registry.register import register
from stages.tracking.registry.rights import LEDGER, OF
from stages.tracking.registry.samples import keep_samples, read_samples
from stages.tracking.registry.versions import all_versions, find_version
from stages.tracking.runs.store import open_client
from stages.tracking.session import Session
from tests.support.surroundings import forget
from tests.support.tracking.runs import into_one_file

MODEL, KEPT = "vidbridge-tiny", "vidbridge-tiny.gate"


@pytest.fixture(scope="module")
def store(dvc_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the project after its registration, created once."""
    root = tmp_path_factory.mktemp("registered") / "project"
    shutil.copytree(dvc_project, root)
    with pytest.MonkeyPatch.context() as patch:
        forget(patch, "VIDBRIDGE_", "MLFLOW_")
        patch.setenv("VIDBRIDGE_PROJECT", str(root))
        register(Session(root))
    into_one_file(root)
    return root / DATABASE


@pytest.fixture
def registered(project: Path, store: Path) -> Path:
    """Seven versions whose scores grow: 1 (0.1), 3 (0.6), 5 (0.65), 7 (0.8); nothing is decided
    yet."""
    shutil.copyfile(store, project / DATABASE)
    return project


def decided(version: int, after: int = 0, previous: int | None = None, production: str | None = None) -> Decided:
    return Decided(now_ms(), "promote", version, previous, after, "dev", "", (), 0.8, production)


def write_as_0_1(root: Path, what: Decided, done: bool = False) -> None:
    """Write an entry as an account that may write the ledger only."""
    client = open_client(root)
    source = find_version(client, MODEL, what.version).source
    tags = {ENTRY: json.dumps(asdict(what)), VERDICT: "## passed"} | ({DONE: "true"} if done else {})
    client.create_model_version(KEPT, source, tags=tags, await_creation_for=0)


def of_0_1(root: Path) -> None:
    """Remove this release's tags from the model, and leave the ledger as 0.1 would have."""
    client = open_client(root)
    for entry in history(Session(root)):
        if entry.moves and entry.done:
            client.set_model_version_tag(KEPT, str(entry.number), DONE, "true")
        client.delete_registered_model_tag(MODEL, PROOF + entry.decided.name)


def champion(root: Path) -> int | None:
    number = open_client(root).get_registered_model(MODEL).aliases.get("champion")
    return int(number) if number else None


def test_ledger_and_production_model_are_made_at_registration(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("production: null", "production: live"))
    assert load_params(project / "params.yaml").gate.production == "live"
    register(Session(project))
    client = open_client(project)
    assert client.get_registered_model(MODEL).tags[LEDGER] == KEPT
    assert [client.get_registered_model(name).tags[OF] for name in (KEPT, "live")] == [MODEL, MODEL]


def test_an_entry_of_a_stranger_is_not_completed_by_the_next_command(registered: Path) -> None:
    write_as_0_1(registered, decided(7))
    refused = promote(Session(registered), 1)
    assert not refused.moved
    assert refused.champion is None
    assert champion(registered) is None, "the stranger's version is champion"
    assert promote(Session(registered), 3).moved
    assert champion(registered) == 3
    entries = history(Session(registered))
    assert [(entry.decided.version, entry.proven, entry.standing) for entry in entries] == [
        (7, False, False),
        (1, True, False),
        (3, True, True),
    ]
    console = Console(width=200, record=True)
    console.print(history_table(entries))
    assert "not counted" in console.export_text()


def test_done_is_what_the_model_says_and_not_the_ledger(registered: Path) -> None:
    promote(Session(registered), 3)
    for what in (decided(7, after=1, previous=3), decided(5, after=1, previous=3)):
        write_as_0_1(registered, what, done=True)
    assert [entry.decided.version for entry in history(Session(registered)) if entry.standing] == [3]
    complete_pending_move(open_client(registered), load_params(registered / "params.yaml").gate)
    assert champion(registered) == 3


def test_who_copies_the_name_of_a_decision_cannot_change_what_it_says(registered: Path) -> None:
    promote(Session(registered), 3)
    client = open_client(registered)
    honest = decided(5, after=1, previous=3)
    client.set_registered_model_tag(MODEL, PROOF + honest.name, "0" * 64)
    write_as_0_1(registered, replace(honest, version=7))
    assert not history(Session(registered))[-1].standing
    # The signed one comes later, and counts although another with its name was there first.
    assert promote(Session(registered), 7).moved
    assert champions(read_ledger(client, MODEL, KEPT)) == [3, 7]


def test_a_ledger_of_0_1_goes_on(registered: Path) -> None:
    for version in (3, 5, 7):
        assert promote(Session(registered), version).moved
    assert rollback(Session(registered)).candidate.number == 5
    before = [(entry.decided, entry.standing, entry.done) for entry in history(Session(registered))]
    of_0_1(registered)
    entries = history(Session(registered))
    assert [(entry.decided, entry.standing, entry.done) for entry in entries] == before
    assert not any(entry.proven for entry in entries)
    assert alias_fault(open_client(registered), MODEL, KEPT) is None
    assert promote(Session(registered), 7).moved
    assert rollback(Session(registered)).candidate.number == 5
    assert rollback(Session(registered)).candidate.number == 3


def test_in_a_ledger_of_0_1_only_versions_that_were_promoted_count(registered: Path) -> None:
    promote(Session(registered), 3)
    of_0_1(registered)
    write_as_0_1(registered, decided(5, after=1, previous=3), done=True)
    assert [entry.standing for entry in history(Session(registered))] == [True, False]
    assert promote(Session(registered), 7).moved
    assert rollback(Session(registered)).candidate.number == 3, "a forged entry is what one could go back to"


@pytest.mark.parametrize("lost", ["deleted", "freed", "removed_videos"])
def test_a_move_that_can_never_be_finished_is_passed_over(
    registered: Path, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client, gate = open_client(registered), load_params(registered / "params.yaml").gate
    assert promote(Session(registered), 3).moved
    write_entry(client, KEPT, find_version(client, MODEL, 5), decided(5, after=1, previous=3), "told")
    if lost == "deleted":
        client.delete_model_version(MODEL, "5")
    else:
        client.set_model_version_tag(MODEL, "5", f"vidbridge.{lost}", '["a.mp4"]')
    capsys.readouterr()
    last = complete_pending_move(client, gate)
    assert "entry 2 of vidbridge-tiny.gate) is abandoned: version 5 " in capsys.readouterr().err
    assert last is not None
    assert (last.number, champion(registered)) == (1, 3)
    assert alias_fault(client, MODEL, KEPT) is None
    assert promote(Session(registered), 7).moved
    assert rollback(Session(registered)).candidate.number == 3
    console = Console(width=200, record=True)
    console.print(history_table(history(Session(registered))))
    assert "abandoned" in console.export_text()


def test_an_alias_set_by_hand_is_mended_by_putting_that_version_to_the_gate(registered: Path) -> None:
    client = open_client(registered)
    client.set_registered_model_alias(MODEL, "champion", "3")
    first = promote(Session(registered), 3)
    assert (first.moved, first.champion) == (True, None)
    client.set_registered_model_alias(MODEL, "champion", "7")
    assert alias_fault(client, MODEL, KEPT) is not None
    second = promote(Session(registered), 7)
    assert second.moved
    assert second.champion is not None
    assert second.champion.number == 3, "judged against the champion of the ledger"
    assert alias_fault(client, MODEL, KEPT) is None
    assert promote(Session(registered), 7).decision.reasons == ("version 7 is champion already",)
    assert rollback(Session(registered)).candidate.number == 3


def test_a_copy_is_made_only_where_author_and_settler_both_mean_that_production_model(registered: Path) -> None:
    client, gate = open_client(registered), load_params(registered / "params.yaml").gate
    for name in ("live", "theirs"):
        client.create_registered_model(name)
    first = decided(3, production="theirs")
    write_entry(client, KEPT, find_version(client, MODEL, 3), first, "told")
    moved = complete_pending_move(client, gate)
    assert champion(registered) == 3
    assert all_versions(client, "theirs") == []
    assert not history(Session(registered))[-1].done, "left to those whose production model it is"
    complete_pending_move(client, gate.model_copy(update={"production": "theirs"}))
    assert find_version(client, "theirs", "champion").tags[COPY_OF] == f"{MODEL}/3"
    assert history(Session(registered))[-1].done
    # An account that may change the model, and not the production model, cannot sign there.
    assert moved is not None
    second = decided(5, after=moved.number, previous=3, production="live")
    write_entry(client, KEPT, find_version(client, MODEL, 5), second, "told")
    client.delete_registered_model_tag("live", PROOF + second.name)
    complete_pending_move(client, gate.model_copy(update={"production": "live"}))
    assert champion(registered) == 5
    assert all_versions(client, "live") == []


def test_a_copy_with_other_content_is_no_copy(registered: Path) -> None:
    client = open_client(registered)
    version = find_version(client, MODEL, 7)
    client.create_registered_model("live")
    foreign = find_version(client, MODEL, 1).source
    client.create_model_version("live", foreign, tags={COPY_OF: f"{MODEL}/7"}, await_creation_for=0)
    number = publish(client, "live", version, {})
    assert find_version(client, "live", number).source == version.source
    assert find_version(client, "live", "champion").number == number


def test_scores_by_sample_that_somebody_changed_in_their_run_are_refused(registered: Path) -> None:
    client = open_client(registered)
    line = json.dumps({"sample_id": "mcqa/1", "clips": ["clip-1"], "task": "mcqa", "value": 0.0}) + "\n"
    keep_samples(Session(registered), find_version(client, MODEL, 3), "d2", line)
    place = find_version(client, MODEL, 3).samples_under("d2")
    assert place is not None
    (row,) = read_samples(client, None, find_version(client, MODEL, 3), "d2")  # type: ignore[arg-type]
    assert row.value == 0.0
    client.log_text(place["run"], line.replace("0.0", "1.0"), "samples.jsonl")
    with pytest.raises(TrackingError, match="holds other scores by sample than were kept with the version"):
        read_samples(client, None, find_version(client, MODEL, 3), "d2")  # type: ignore[arg-type]


def test_a_decision_that_nobody_signed_is_not_made_by_its_name_alone(registered: Path) -> None:
    client = open_client(registered)
    client.set_registered_model_tag(MODEL, PROOF + uuid.uuid4().hex, "0" * 64)
    assert history(Session(registered)) == []
