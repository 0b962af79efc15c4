"""Content that `vidbridge gc` frees and keeps: on a real cache, remote, repository and registry."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.errors import FlowError, UsageError
from flows.project.diagnosis.project import check_champion
from flows.repro import registered
from stages.tracking.gate.promote import promote, rollback
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.explain import explain
from stages.tracking.registry.ledger import ENTRY
from stages.tracking.registry.named import find_named
from stages.tracking.registry.register import RegisterReport
from stages.tracking.registry.versions import JUDGING, find_version, load_version
from stages.tracking.runs.store import open_client
from stages.tracking.session import Session
from tests.support.projects.kept import (
    CACHE,
    DAY_S,
    MODEL,
    REMOTE,
    add_to_lock,
    ask,
    decide,
    folder,
    free,
    held_elsewhere,
    in_store,
    version,
    with_ingest,
)


def test_only_what_nothing_needs_is_freed(
    here: Path, save: Callable[[Path, str], str], git_output: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {
        name: {"final/config.json": name.encode(), "final/model.safetensors": name.encode() * 1000}
        for name in ("old", "run")
    }
    old = folder(here, weights["old"], CACHE, REMOTE)
    run = folder(here, weights["run"], CACHE, REMOTE)
    theirs = folder(here, {"a": b"another project's"}, REMOTE)
    lock = (here / "dvc.lock").read_text()
    # The first is in the history only, the second on a branch of a run.
    for name, oid, branch in (("old", old, None), ("run", run, "runs/one")):
        add_to_lock(here, name, oid)
        save(here, name)
        if branch:
            git_output(here, "branch", branch)
        (here / "dvc.lock").write_text(lock)
        save(here, "back")
    parent = version(here, old, "sft@old")
    child = version(
        here,
        folder(here, {"final/config.json": b"{}"}, CACHE),
        "grpo@child",
        parents=json.dumps({"models/old": {"stage": "sft@old", "out": old}}),
    )
    champion = find_version(open_client(here), MODEL, "champion")

    shown = free(here, capsys)
    assert not shown["freed"]
    assert in_store(here, CACHE, old)
    (row,) = (row for row in shown["rows"] if row["kind"] == "cache" and row["free"])
    # The remote has a copy of the old ones; there is none of the child.
    assert (row["objects"], row["bytes"]) == (
        3,
        3000 + 3 + len((here / CACHE / "files/md5" / old[:2] / old[2:]).read_bytes()),
    )
    free(here, capsys, yes=True)
    assert not in_store(here, CACHE, old)
    assert in_store(here, REMOTE, old)
    assert in_store(here, CACHE, run)
    assert {row["free"] for row in free(here, capsys, remote=True)["rows"]} == {False}  # still registered

    shared = version(here, run, "sft@shared", out="0" * 32 + ".dir")
    given_up = free(here, capsys, yes=True, remote=True, versions=True)
    assert find_version(open_client(here), MODEL, shared).freed is None, (
        "a branch keeps its content, so it is not given up"
    )
    assert {row["kind"] for row in given_up["rows"] if row["free"]} == {"cache", "remote", "versions"}
    assert not in_store(here, REMOTE, old)
    assert in_store(here, REMOTE, run)
    assert in_store(here, REMOTE, theirs)
    told = find_version(open_client(here), MODEL, parent).freed
    assert told is not None
    assert "given up on" in told
    assert [(one.stage, one.version) for one in explain(Session(here), child).ancestors] == [("sft@old", parent)]
    assert "no longer has weights: given up on" in promote(Session(here), parent, author="tester").decision.reasons[0]
    # Content that a lock, an alias and a branch need is there, also for a machine with an empty
    # cache.
    shutil.rmtree(here / ".dvc/cache")
    assert (load_version(here, find_named(Session(here), "champion")) / "model.safetensors").stat().st_size == 2 << 20
    assert find_version(open_client(here), MODEL, "champion").number == champion.number
    assert {row["free"] for row in free(here, capsys, remote=True, versions=True)["rows"]} == {False}


def test_an_earlier_champion_keeps_its_weights_and_rollback_reaches_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = find_version(open_client(here), MODEL, "champion").number
    oid = folder(here, {"final/config.json": b"{}"}, CACHE)
    earlier = version(here, oid, "sft@earlier")
    decide(here, earlier)
    decide(here, first)
    free(here, capsys, yes=True, versions=True, remote=True)
    assert in_store(here, CACHE, oid)
    # Freed before the rollback: the mark stays as long as the weights are missing, and rollback
    # refuses it.
    client, data = open_client(here), here / CACHE / "files/md5" / oid[:2] / oid[2:]
    client.set_model_version_tag(MODEL, str(earlier), "vidbridge.freed", "given up on a day")
    data.unlink()
    free(here, capsys, yes=True)
    with pytest.raises(
        TrackingError, match=rf"cannot go back: version {earlier} no longer has weights: given up on a day"
    ):
        rollback(Session(here), author="tester")
    folder(here, {"final/config.json": b"{}"}, CACHE)
    free(here, capsys, yes=True)
    assert find_version(client, MODEL, earlier).freed is None
    assert rollback(Session(here), author="tester").candidate.number == earlier
    assert (load_version(here, find_named(Session(here), "champion")) / "config.json").read_text() == "{}"


def test_what_is_young_or_cannot_be_told_is_not_touched(
    here: Path,
    save: Callable[[Path, str], str],
    git_output: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    oid = folder(here, {"a": b"left behind"}, CACHE, REMOTE)
    young = free(here, capsys, keep_days=1.0)
    assert [row for row in young["rows"] if row["free"]] == []
    for path in (here / CACHE).rglob("*"):
        os.utime(path, (0, 0))
    assert [row["objects"] for row in free(here, capsys, keep_days=1.0)["rows"] if row["free"]] == [2]

    # A branch that only the origin has may need it.
    git_output(here.parent, "clone", "-q", str(here), "other")
    git_output(here, "remote", "add", "origin", str(here.parent / "other"))
    add_to_lock(here.parent / "other", "theirs", oid)
    save(here.parent / "other", "theirs")
    with pytest.raises(
        TrackingError, match=r"git remote origin: refs/heads/main was not fetched.*do: git fetch origin"
    ):
        free(here, capsys, yes=True, remote=True)
    git_output(here, "fetch", "-q", "origin")
    free(here, capsys, yes=True, remote=True)
    assert in_store(here, REMOTE, oid)
    assert in_store(here, CACHE, oid)
    git_output(here, "remote", "remove", "origin")

    # A branch whose lock cannot be read.
    git_output(here, "checkout", "-q", "-b", "damaged")
    (here / "dvc.lock").write_text("stages: [")
    save(here, "damaged")
    git_output(here, "checkout", "-q", "main")
    with pytest.raises(TrackingError, match=r"refs/heads/damaged:dvc.lock: cannot be read, so its needs are unknown"):
        free(here, capsys, yes=True)
    git_output(here, "branch", "-q", "-D", "damaged")

    # A registry that does not answer: content stays, the rest is checked.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    unknown = free(here, capsys, yes=True)
    assert "registry or ledger: cannot be read" in unknown["notes"][0]
    assert in_store(here, CACHE, oid)
    for asked in ({"remote": True}, {"remote": True, "versions": True}):
        with pytest.raises(TrackingError, match=r"who needs content cannot be told.*nothing was freed"):
            free(here, capsys, yes=True, **asked)
    with pytest.raises(UsageError, match=r"--versions: this project has a DVC remote.*add --remote"):
        free(here, capsys, yes=True, versions=True)


def test_a_store_that_knows_nothing_of_the_project_frees_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    oid = folder(here, {"a": b"of a champion that another store knows"}, CACHE, REMOTE)
    registered.write(Session(here), RegisterReport(MODEL, (), 0, (), 1, None, (), (), 0, {}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here.parent / 'empty.db'}")
    with pytest.raises(
        FlowError, match=r"MLFLOW_TRACKING_URI: this project's versions were registered in sqlite:.*nothing was freed"
    ):
        free(here, capsys, yes=True)
    assert check_champion(Session(here)).state == "warn"
    # Another clone has no note; then nothing that others share is freed.
    (here / ".vidbridge/registered.json").unlink()
    for order in ({"remote": True}, {"remote": True, "versions": True}):
        with pytest.raises(UsageError, match=r"empty.db holds no version of vidbridge-tiny"):
            free(here, capsys, yes=True, **order)
    assert in_store(here, CACHE, oid)
    assert in_store(here, REMOTE, oid)
    assert "empty.db" in check_champion(Session(here)).found


def test_a_shared_cache_and_other_projects(
    here: Path, save: Callable[[Path, str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    shared = Path("../shared")
    (here / CACHE).rename(here / shared)
    (here / ".dvc/config.local").write_text(f"[cache]\n    dir = {here / shared}\n")
    theirs = folder(here, {"a": b"somebody else's"}, shared)
    ours = folder(here, {"a": b"ours", "b": b"old"}, shared)
    registered_there = folder(here, {"a": b"ours, and registered by the other project"}, shared)
    lock = (here / "dvc.lock").read_text()
    add_to_lock(here, "old", ours)
    add_to_lock(here, "old2", registered_there)
    save(here, "old")
    (here / "dvc.lock").write_text(lock)
    save(here, "back")
    other = here.parent / "user"
    other.mkdir()
    (other / "dvc.yaml").write_text("stages: {}\n")
    (other / "dvc.lock").write_text("schema: '2.0'\nstages:\n")
    add_to_lock(other, "uses", ours)
    (other / ".vidbridge").mkdir()
    for path in (here / ".vidbridge").glob("mlflow.db*"):
        shutil.copy(path, other / ".vidbridge")
    version(other, registered_there, "sft@theirs")
    free(here, capsys, yes=True, also=(other,))
    assert in_store(here, shared, ours)
    assert in_store(here, shared, theirs)
    assert in_store(here, shared, registered_there)
    for path in (other / ".vidbridge").glob("mlflow.db*"):
        path.unlink()
    (other / ".vidbridge/mlflow.db").write_bytes(b"damaged" * 1000)
    with pytest.raises(TrackingError, match=r"--also .*user: what it needs cannot be told: .*nothing was freed"):
        free(here, capsys, yes=True, also=(other,))
    free(here, capsys, yes=True)
    assert not in_store(here, shared, ours)
    assert in_store(here, shared, theirs)
    with pytest.raises(UsageError, match=r"--also: .* holds no dvc.yaml"):
        free(here, capsys, also=(here.parent,))


def test_a_run_that_goes_on_is_not_disturbed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    oid = folder(here, {"a": b"of a run"}, CACHE)
    clone = here / ".vidbridge/scheduled/one"
    clone.mkdir(parents=True)
    (clone / "dvc.yaml").write_text("stages: {}\n")
    with held_elsewhere(clone), pytest.raises(FlowError, match="is running this project already"):
        free(here, capsys, yes=True)
    assert in_store(here, CACHE, oid)
    # Its future needs are in its own lock, before any commit has them.
    (clone / "dvc.lock").write_text("schema: '2.0'\nstages:\n")
    add_to_lock(clone, "made", oid)
    free(here, capsys, yes=True)
    assert in_store(here, CACHE, oid)


def test_what_runs_leave_behind(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, now = here / ".vidbridge", (here / "params.yaml").stat().st_mtime
    loaded = load_version(here, find_named(Session(here), "champion"))
    (state / "loaded" / ("f" * 32) / "final").mkdir(parents=True)
    for name in (
        "scratch/sft-x/old/state.pt",
        "scratch/sft-x/new/state.pt",
        "frames/a.npy",
        "examined/abc.jsonl",
        "examined/abc/normalised/x.mp4",
    ):
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        (state / name).write_bytes(b"x" * 1000)
    for path in state.rglob("*"):
        if "new" not in path.parts:
            os.utime(path, (now - 30 * DAY_S,) * 2)
    rows = free(here, capsys, yes=True, keep_days=7.0)["rows"]
    freed = {row["kind"]: (row["objects"], row["bytes"]) for row in rows if row["free"]}
    assert freed == {"scratch": (1, 1000), "frames": (1, 1000), "examined": (2, 2000), "loaded": (0, 0)}
    left = {str(path.relative_to(state)) for path in state.rglob("*") if path.is_file()}
    assert "scratch/sft-x/new/state.pt" in left
    assert not {"frames/a.npy", "scratch/sft-x/old/state.pt", "examined/abc.jsonl"} & left
    assert loaded.is_dir()


def test_what_strangers_wrote_stops_nothing_and_what_is_judged_stays(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = open_client(here)
    theirs = folder(here, {"a": b"theirs"}, CACHE, REMOTE)
    junk = {"vidbridge.stage": "sft@x", "vidbridge.out": theirs, "vidbridge.removed_videos": "{", "vidbridge.data": "["}
    for name, more in {"bob's model": {}, "bob.gate": {ENTRY: "no entry"}}.items():
        client.create_registered_model(name)
        client.create_model_version(name, f"dvc://{theirs}/final", tags=junk | more)
    oid = folder(here, {"a": b"put to the gate now"}, CACHE, REMOTE)
    number = version(here, oid, "sft@judged")
    assert not promote(Session(here), number, author="tester").moved
    free(here, capsys, yes=True, remote=True, versions=True)
    assert find_version(client, MODEL, number).freed is None
    assert in_store(here, REMOTE, oid)
    client.set_model_version_tag(MODEL, str(number), JUDGING, "1000")
    free(here, capsys, yes=True, remote=True, versions=True)
    assert find_version(client, MODEL, number).freed is not None
    assert not in_store(here, REMOTE, oid)
    assert in_store(here, REMOTE, theirs)

    source = here / "data/corpus"
    (source / "videos").mkdir(parents=True)
    (source / "videos/a.mp4").write_bytes(b"a")
    (source / "annotations.jsonl").write_text('{"id": "a", "video": "videos/a.mp4"}\n')
    with_ingest(here)
    assert ask(here, capsys, "a")["skipped"] == ["bob's model version 1", "bob.gate version 1"]
