"""A registry and a remote that others write to: neither makes a reader write, read or run anything
but content in its folder.

Each attack has succeeded against 0.1. The remote, the cache, the registry and its database are
real.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.runtime.paths import DATABASE, LOADED, SERVABLE
from stages.tracking.gate.promote import history, promote
from stages.tracking.lineage.listing import MAX_BYTES, ListError
from stages.tracking.lineage.lockfile import read_lock
from stages.tracking.lineage.opening import open_content
from stages.tracking.lineage.source import Source
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.explain import explain
from stages.tracking.registry.ledger import alias_fault
from stages.tracking.registry.named import find_named
from stages.tracking.registry.register import register
from stages.tracking.registry.servable import load_servable, usage_of_version
from stages.tracking.registry.versions import CHAMPION, find_version, load_version
from stages.tracking.runs.store import open_client
from stages.tracking.session import Session
from tests.support.checkout import ROOT
from tests.support.surroundings import assert_untouched, forget, put
from tests.support.tracking.poisoned import MODEL, PATHS, doors, listed, point

LEDGER = f"{MODEL}.gate"


@pytest.fixture
def registered(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    forget(monkeypatch, "VIDBRIDGE_", "MLFLOW_", "GIT_")
    root = tmp_path / "project"
    shutil.copytree(template, root)
    monkeypatch.setenv("VIDBRIDGE_PROJECT", str(root))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / DATABASE}")
    return root


@pytest.fixture
def remote(registered: Path) -> Path:
    return registered / ".vidbridge/remote"


@pytest.mark.parametrize("path", ["up", "absolute", "a file and a folder"])
def test_a_list_with_such_a_path_places_nothing_through_any_door(
    registered: Path, remote: Path, outside: Path, tmp_path: Path, path: str
) -> None:
    evil = put(remote, b"evil")
    point(registered, f"dvc://{listed(remote, {'md5': evil, 'relpath': PATHS[path]})}/final")
    (tmp_path / "download").mkdir()
    before = set(tmp_path.rglob("*"))
    for name, door in doors(registered, tmp_path / "download").items():
        with pytest.raises(
            Exception, match=r"folder [0-9a-f]{32}\.dir: .*; nothing of it was placed; unless a file of yours"
        ) as error:
            door()
        assert "\n" not in str(error.value), name
    assert_untouched(outside)
    made = [file.relative_to(registered).as_posix() for file in set(tmp_path.rglob("*")) - before if file.is_file()]
    # The list itself and nothing else was fetched; nothing was placed.
    assert len([file for file in made if file.startswith(".dvc/cache/files/")]) == 1
    assert not [
        file for file in made if not file.startswith((".dvc/", ".vidbridge/mlflow.db", ".vidbridge/fetch.lock"))
    ]


def test_a_huge_list_is_not_fetched(registered: Path, remote: Path) -> None:
    huge = remote / "files/md5/01" / "23456789abcdef0123456789abcdef.dir"
    huge.parent.mkdir(parents=True)
    with huge.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # a hole: no bytes are written
    point(registered, "dvc:///0123456789abcdef0123456789abcdef.dir")
    with pytest.raises(ListError, match=r"has 268,435,457 bytes, 268,435,456 are read; keep small files in fewer"):
        load_version(registered, find_named(Session(registered), "candidate"))
    assert not (registered / ".dvc/cache/files/md5/01").exists()


def test_a_hash_that_is_a_path_reads_nothing_of_this_machine(registered: Path, remote: Path, outside: Path) -> None:
    here = "../" * 12 + str(outside)
    point(registered, f"dvc://{listed(remote, {'md5': here, 'relpath': 'final/notes.json'})}/final")
    with pytest.raises(ListError, match="is not 32 hex digits"):
        load_version(registered, find_named(Session(registered), "candidate"))
    with open_content(registered) as content, pytest.raises(TrackingError, match="is not a hash of DVC"):
        content.fetch([here], "samples")


def test_a_lock_that_names_a_path_for_a_hash_sends_nothing_to_the_remote(
    registered: Path, remote: Path, outside: Path
) -> None:
    """`register` pushes what the lock names; DVC copied the file to the remote."""
    lock = registered / "dvc.lock"
    oid = read_lock(registered)["base"].outs["models/base/final"]
    lock.write_text(lock.read_text().replace(oid, "../" * 12 + str(outside)))
    before = sorted(remote.rglob("*"))
    with pytest.raises(TrackingError, match="is not a hash of DVC"):
        register(Session(registered))
    with open_content(registered) as content, pytest.raises(TrackingError, match="is not a hash of DVC"):
        content.push(["../" * 12 + str(outside)])
    assert sorted(remote.rglob("*")) == before


@pytest.mark.parametrize(
    "source",
    [
        "file:///etc",
        "/etc",
        "runs:/1/model",
        "http://127.0.0.1:1/m",
        "models:/other/1",
        "hf://a/b",
        "dvc://../../etc",
        "",
    ],
)
def test_only_content_is_opened_whatever_source_and_storage_location_say(registered: Path, source: str) -> None:
    version = find_version(open_client(registered), MODEL, "candidate")
    good = version.source
    point(registered, source, good)
    for load in (load_servable, load_version):
        with pytest.raises(
            TrackingError, match=rf"{MODEL} version {version.number}: model source '.*': expected dvc://"
        ):
            load(registered, find_version(open_client(registered), MODEL, "candidate"))


def test_a_folder_with_code_behind_storage_location_is_not_what_is_served(registered: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "MLmodel").write_text("flavors: {python_function: {loader_module: code, model_code_path: code.py}}\n")
    (evil / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    good = find_version(open_client(registered), MODEL, "candidate").source
    point(registered, good, str(evil))
    folder = load_servable(registered, find_version(open_client(registered), MODEL, "candidate"))
    assert sorted(path.name for path in folder.iterdir()) == [
        "MLmodel",
        "config.json",
        "model.safetensors",
        "served.py",
        "vidbridge.json",
    ]
    assert "stages.tools.serving.server" in (folder / "served.py").read_text()
    assert folder.is_relative_to(registered / SERVABLE)


def test_a_servable_folder_that_was_changed_is_put_together_again(registered: Path) -> None:
    version = find_version(open_client(registered), MODEL, "candidate")
    folder = load_servable(registered, version)
    served = (folder / "served.py").read_text()
    for change in (
        lambda: (folder / "served.py").write_text("import os"),
        lambda: (folder / "extra.py").write_text("import os"),
        lambda: (folder / "config.json").unlink(),
        lambda: ((folder / "MLmodel").unlink(), (folder / "MLmodel").symlink_to("/etc/passwd")),
    ):
        change()
        assert load_servable(registered, version) == folder
        assert (folder / "served.py").read_text() == served
        assert len(list(folder.iterdir())) == 5
        assert [path for path in folder.iterdir() if path.is_symlink()] == []


def test_content_that_brings_the_names_of_what_is_added_is_written_over_and_the_cache_is_not(
    registered: Path, remote: Path
) -> None:
    """A large file was a hard link to the cache, and additions were written through it."""
    evil = put(remote, b"x" * (2 << 20))
    point(registered, f"dvc://{listed(remote, {'md5': evil, 'relpath': 'final/MLmodel'})}/final")
    folder = load_servable(registered, find_version(open_client(registered), MODEL, "candidate"))
    assert "python_function" in (folder / "MLmodel").read_text()
    assert (registered / ".dvc/cache/files/md5" / evil[:2] / evil[2:]).read_bytes() == b"x" * (2 << 20)


@pytest.mark.parametrize("where", ["loaded", "the hash", "the folder"])
def test_a_link_where_the_folder_is_to_be_is_not_followed(registered: Path, outside: Path, where: str) -> None:
    source = find_version(open_client(registered), MODEL, "candidate").source
    oid = source.removeprefix("dvc://").split(".dir")[0]
    link = {"loaded": LOADED, "the hash": LOADED / oid, "the folder": LOADED / oid / "final"}[where]
    (registered / link).parent.mkdir(parents=True, exist_ok=True)
    (registered / link).symlink_to(outside.parent)
    with pytest.raises(TrackingError, match="is a link where a folder is to be, and could lead anywhere; remove it"):
        load_version(registered, find_named(Session(registered), "candidate"))
    assert_untouched(outside)


def test_a_link_in_the_folder_of_a_download_is_not_followed(registered: Path, outside: Path, tmp_path: Path) -> None:
    source = Source(read_lock(registered)["grpo@general"].outs["models/general"], "")
    target = tmp_path / "target"
    (target / "final").mkdir(parents=True)
    (target / "final/config.json").symlink_to(outside)
    with open_content(registered) as content:
        content.place(source, target)
        assert (target / "final/config.json").is_file()
        assert not (target / "final/config.json").is_symlink()
        shutil.rmtree(target / "final")
        (target / "final").symlink_to(outside.parent)
        with pytest.raises(TrackingError, match="final: a link is in the way of what is to be placed there"):
            content.place(source, target)
        (target / "final").unlink()
        (target / "final/config.json").mkdir(parents=True)
        with pytest.raises(TrackingError, match=r"config\.json: a folder is in the way"):
            content.place(source, target)
    assert_untouched(outside)


def test_one_version_below_another_does_not_change_it(registered: Path, remote: Path) -> None:
    deep = listed(remote, {"md5": put(remote, b"{}"), "relpath": "final/deep/config.json"})
    point(registered, f"dvc://{deep}/final/deep")
    assert [path.name for path in load_version(registered, find_named(Session(registered), "candidate")).iterdir()] == [
        "config.json"
    ]
    point(registered, f"dvc://{deep}/final")
    assert sorted(
        path.name for path in load_version(registered, find_named(Session(registered), "candidate")).iterdir()
    ) == [
        "config.json",
        "deep",
        "model.safetensors",
    ]


def test_an_alias_that_the_gate_did_not_put_there_is_told_of(
    registered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.console.champion import warn_of_moved
    from flows.project.diagnosis.project import check_champion

    project = registered
    client = open_client(project)

    def fault() -> str | None:
        return alias_fault(client, MODEL, LEDGER)

    assert fault() is None
    client.set_registered_model_alias(MODEL, CHAMPION, "1")
    assert "is on version 1, and the gate did not put it there: it has promoted none" in str(fault())
    client.delete_registered_model_alias(MODEL, CHAMPION)
    moved = promote(Session(project))
    assert moved.moved
    assert fault() is None
    assert explain(Session(project), CHAMPION).alias_fault is None
    warn_of_moved(Session(project), CHAMPION)
    assert capsys.readouterr().err == ""
    client.set_registered_model_alias(MODEL, CHAMPION, "1")
    said = (
        f"{MODEL}: the alias 'champion' is on version 1, and the gate did not put it there: its last decision (promote,"
        " entry 1 of"
    )
    assert str(fault()).startswith(said)
    # Both are reported: the one that is there, and the one that should be.
    for which in (CHAMPION, str(moved.candidate.number)):
        assert explain(Session(project), which).alias_fault == fault()
    assert explain(Session(project), 2).alias_fault is None
    for which in (CHAMPION, f"models:/{MODEL}@champion"):
        warn_of_moved(Session(project), which)
        assert capsys.readouterr().err == f"warning: {fault()}\n"
    warn_of_moved(Session(project), "1")
    assert capsys.readouterr().err == ""
    client.delete_registered_model_alias(MODEL, CHAMPION)
    assert "the alias 'champion' is gone" in str(fault())
    # The alias is where it was put, and the version is other content.
    client.set_registered_model_alias(MODEL, CHAMPION, str(moved.candidate.number))
    assert fault() is None
    assert check_champion(Session(project)).state == "ok"
    point(project, f"dvc://{'0' * 32}.dir/final")
    assert (
        f"version {moved.candidate.number} is not the content that the gate made 'champion': its source was 'dvc://"
        in str(fault())
    )
    found = check_champion(Session(project))
    assert (found.state, f"{found.found}; {found.todo}") == ("warn", fault())


def test_a_production_model_whose_champion_was_moved_is_told_of(registered: Path) -> None:
    client = open_client(registered)
    params = registered / "params.yaml"
    text = params.read_text()
    assert "production: null" in text
    params.write_text(text.replace("production: null", "production: vidbridge-live"))
    assert promote(Session(registered)).moved
    assert explain(Session(registered), CHAMPION).alias_fault is None
    source = find_version(client, MODEL, 1).source
    client.create_model_version(
        "vidbridge-live", source, tags={"vidbridge.copy_of": f"{MODEL}/1"}, await_creation_for=0
    )
    client.set_registered_model_alias("vidbridge-live", CHAMPION, "2")
    assert "vidbridge-live: 'champion' is version 2, which is not the copy of version 7" in str(
        explain(Session(registered), CHAMPION).alias_fault
    )
    # The right name on other content is not the copy either.
    client.set_model_version_tag("vidbridge-live", "2", "vidbridge.copy_of", f"{MODEL}/7")
    assert "which is not the copy of version 7" in str(explain(Session(registered), CHAMPION).alias_fault)


def test_the_command_says_it_in_a_sentence(registered: Path, remote: Path, outside: Path, tmp_path: Path) -> None:
    evil = put(remote, b"evil")
    client = open_client(registered)
    client.set_registered_model_alias(MODEL, CHAMPION, str(find_version(client, MODEL, "candidate").number))
    point(registered, f"dvc://{listed(remote, {'md5': evil, 'relpath': PATHS['up']})}/final")
    command = [sys.executable, "-m", "flows.cli.main", "export", str(tmp_path / "made")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=registered, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    warned, refused = done.stderr.splitlines()
    assert warned.startswith(
        f"warning: {MODEL}: the alias 'champion' is on version 7, and the gate did not put it there"
    )
    assert refused.startswith("error: ")
    assert "may leave its folder (an empty part, '.' or '..'); nothing of it was placed" in refused
    assert not (tmp_path / "made").exists()
    assert_untouched(outside)


def test_a_tag_that_is_not_what_it_should_be_says_which(registered: Path) -> None:
    client = open_client(registered)
    number = find_version(client, MODEL, "candidate").number
    digest = find_version(client, MODEL, number).scores.digest  # type: ignore[union-attr]
    for tag in (
        "parents",
        "data",
        "params",
        "gauges",
        "scores",
        "baselines",
        "samples",
        "usage",
        "step",
        "samples.d9",
        "scores.d9",
    ):
        whole = find_version(client, MODEL, number).tags.get(f"vidbridge.{tag}", "")
        for text in ("{{{", "[1]", '{"a": 1}', "[" * 5000):
            if (tag, text) == ("params", '{"a": 1}'):
                continue  # any table is one of parameters
            client.set_model_version_tag(MODEL, str(number), f"vidbridge.{tag}", text)
            version = find_version(client, MODEL, number)
            readers: dict[str, Callable[[], object]] = {
                "usage": lambda version=version: usage_of_version(version),
                "samples": lambda version=version: version.samples_under(digest),
                "samples.d9": lambda version=version: version.samples_under("d9"),
                "scores.d9": lambda version=version: version.scores_under("d9"),
            }
            read = readers.get(tag, lambda version=version, tag=tag: getattr(version, tag))
            with pytest.raises(
                TrackingError, match=rf"{MODEL} version {number}: tag vidbridge\.{tag}: [^:]"
            ) as refused:
                read()
            assert "\n" not in str(refused.value)
        client.set_model_version_tag(MODEL, str(number), f"vidbridge.{tag}", whole)


def test_parents_in_a_circle_end(registered: Path) -> None:
    client = open_client(registered)
    version = find_version(client, MODEL, "candidate")
    client.set_model_version_tag(
        MODEL,
        str(version.number),
        "vidbridge.parents",
        json.dumps({"models/x": {"stage": version.stage, "out": version.out}}),
    )
    assert [item.version for item in explain(Session(registered), version.number).ancestors] == [version.number]


def test_an_entry_of_the_ledger_that_is_none_is_one_sentence(registered: Path) -> None:
    client = open_client(registered)
    source = find_version(client, MODEL, "candidate").source
    entry = {
        "at_ms": "yesterday",
        "action": "promote",
        "version": 1,
        "previous": None,
        "after": 0,
        "author": "x",
        "reason": "",
    }
    tags = {"vidbridge.entry": json.dumps(entry | {"reasons": [], "mean": None, "production": None, "name": "n"})}
    client.create_model_version(LEDGER, source, tags=tags, await_creation_for=0)
    with pytest.raises(
        TrackingError, match=r"tag vidbridge\.entry: not a decision of the gate \(Input should be a valid integer"
    ):
        history(Session(registered))
