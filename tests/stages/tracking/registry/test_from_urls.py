"""A registry and a remote by their URLs, and an empty folder: no clone, no git, nothing written
but the cache folder."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.cli.outside import reader
from flows.console import champion
from flows.errors import UsageError
from stages.runtime.paths import DATABASE
from stages.runtime.project import ProjectError
from stages.tracking.lineage.cache_folder import (
    CACHE_VARIABLE,
    SIZE_VARIABLE,
    TAG_FILE,
    cache_folder,
    is_cache,
    prune,
    removable_items,
)
from stages.tracking.lineage.listing import ListError
from stages.tracking.lineage.opening import open_content
from stages.tracking.lineage.remote import REMOTE_VARIABLE
from stages.tracking.lineage.source import Source, parse_source
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.compare import compare_pair, find_pair
from stages.tracking.registry.explain import explain
from stages.tracking.registry.named import MODEL_VARIABLE, find_named
from stages.tracking.registry.servable import load_servable
from stages.tracking.registry.versions import load_version
from tests.support.surroundings import forget, put

MODEL = "vidbridge-tiny"
URI = f"models:/{MODEL}@candidate"


@pytest.fixture
def cache(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of the cache folder, not created yet; the working folder is empty, and no program is
    found, git least of all."""
    forget(monkeypatch, "VIDBRIDGE_", "MLFLOW_", "GIT_", "XDG_")
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{template / DATABASE}")
    monkeypatch.setenv(REMOTE_VARIABLE, str(template / ".vidbridge/remote"))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_two_urls_are_enough(cache: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    session = reader()
    root = session.root
    assert root == cache
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    found = find_named(session, URI)
    assert find_named(session, f"models:/{MODEL}/{found.number}") == found
    monkeypatch.setenv(MODEL_VARIABLE, MODEL)
    assert find_named(session, "candidate") == found
    explanation = explain(session, URI)
    assert (explanation.version, explanation.alias_fault) == (found, None)
    # As `register` found it: there is no git to read.
    assert explanation.commit == found.lock_commit is not None
    assert [ancestor.stage for ancestor in explanation.ancestors] == ["grpo@bridge", "sft@cold-start", "base"]
    folder = load_servable(root, found)
    assert names(folder) == ["MLmodel", "config.json", "model.safetensors", "served.py", "vidbridge.json"]
    assert folder.is_relative_to(cache)
    weights = folder / "model.safetensors"
    assert (weights.stat().st_nlink, stat.S_IMODE(weights.stat().st_mode)) == (2, 0o444)
    loaded = Path(mlflow.artifacts.download_artifacts(URI))
    # MLflow adds a note of its own.
    assert names(loaded) == [
        "MLmodel",
        "config.json",
        "model.safetensors",
        "registered_model_meta",
        "served.py",
        "vidbridge.json",
    ]
    assert (loaded / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    shutil.rmtree(loaded)
    # Present content is not fetched again.
    monkeypatch.delenv(REMOTE_VARIABLE)
    assert load_servable(root, found) == folder
    assert names(load_version(root, found)) == ["config.json", "model.safetensors"]
    assert not list(Path.cwd().iterdir())
    assert not (template / ".dvc/cache").exists()


def test_versions_are_compared_by_their_scores_in_the_remote(cache: Path) -> None:
    session = reader()
    asked = find_pair(session, f"models:/{MODEL}/7", "5")
    assert (asked.after.number, asked.before.number, asked.to_rescore) == (7, 5, None)
    assert compare_pair(session, asked, 0.95).mean.mean == pytest.approx(0.15)
    with pytest.raises(TrackingError, match="other and vidbridge-tiny are two registered models"):
        find_pair(session, f"models:/{MODEL}/7", "models:/other/5")
    assert is_cache(cache)


def test_which_model_is_meant_has_to_be_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = reader()
    with pytest.raises(
        TrackingError, match=rf"^VIDBRIDGE_MODEL: not set, .*mlflow\.db has {MODEL}; write models:/NAME@champion"
    ):
        find_named(session, "candidate")
    monkeypatch.setenv(MODEL_VARIABLE, "a/b")
    with pytest.raises(TrackingError, match="VIDBRIDGE_MODEL: 'a/b' is not the name of a registered model"):
        find_named(session, "candidate")
    monkeypatch.setenv(MODEL_VARIABLE, "other")
    for which in ("candidate", "models:/other@candidate"):
        with pytest.raises(
            TrackingError, match=rf"^other: the registry has no version .* has {MODEL}; name one of these"
        ):
            find_named(session, which)
    with pytest.raises(TrackingError, match=rf"^{MODEL}: no version '99' \(latest: 1"):
        find_named(session, f"models:/{MODEL}/99")
    for which in (
        "models:/",
        f"models:/{MODEL}",
        f"models:{MODEL}@x",
        f"models:/{MODEL}/x",
        "models:/a'b@x",
        f"models:/{MODEL}@a/b",
    ):
        with pytest.raises(TrackingError, match="is not a version; write models:/NAME@champion or models:/NAME/3"):
            find_named(session, which)
        with pytest.raises(TrackingError, match="is not a version"):
            champion.warn_of_moved(session, which)


def folder_in_the_way(cache: Path) -> None:
    cache.write_text("a file")


def project_there(cache: Path) -> None:
    cache.mkdir()
    (cache / "dvc.yaml").write_text("stages: {}\n")


def remote_there(cache: Path) -> None:
    put(cache, b"somebody else's")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"MLFLOW_TRACKING_URI": ""},
            r"is not inside a project .*git clone URL.* MLFLOW_TRACKING_URI names .* VIDBRIDGE_DVC_REMOTE",
        ),
        (
            {"MLFLOW_TRACKING_URI": "sqlite:///own.db"},
            r"counts from the folder of a project.*write sqlite:////absolute/path\.db",
        ),
        ({"MLFLOW_TRACKING_URI": "sqlite:////nowhere/own.db"}, "no such file; correct the path, or name the server"),
        ({"VIDBRIDGE_PROJECT": "/nowhere"}, "VIDBRIDGE_PROJECT: '/nowhere' holds no dvc.yaml"),
        (
            {"VIDBRIDGE_CACHE": "/proc/nowhere"},
            r"^VIDBRIDGE_CACHE: '/proc/nowhere' cannot be used as the cache folder \(No such file",
        ),
        (
            {"VIDBRIDGE_CACHE": "", "XDG_CACHE_HOME": "/proc"},
            "^XDG_CACHE_HOME: '/proc/vidbridge' cannot be used .*set VIDBRIDGE_CACHE",
        ),
        ({"VIDBRIDGE_CACHE": "", "HOME": "/proc/nowhere"}, "^HOME: '/proc/nowhere/.cache/vidbridge' cannot be used"),
        (
            folder_in_the_way,
            r"cannot be used as the cache folder \((File exists|Not a directory)\); set VIDBRIDGE_CACHE to",
        ),
        (project_there, "is a project's folder; name one of its own"),
        (remote_there, "holds objects that are not ours; name a new or an empty folder"),
    ],
)
def test_what_is_missing_is_one_sentence(
    cache: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str] | Callable[[Path], None], sentence: str
) -> None:
    if isinstance(change, dict):
        for name, value in change.items():
            monkeypatch.setenv(name, value)
    else:
        change(cache)
    with pytest.raises((UsageError, ProjectError, TrackingError), match=sentence) as said:
        reader()
    assert "\n" not in str(said.value)


def test_where_the_cache_folder_is(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home/.cache/vidbridge"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/vidbridge"


@pytest.mark.parametrize(
    ("remote", "sentence"),
    [
        (
            None,
            (
                r"is not in the cache folder .*VIDBRIDGE_DVC_REMOTE is not set; set VIDBRIDGE_DVC_REMOTE to the URL .*"
                r" VIDBRIDGE_PROJECT"
            ),
        ),
        ("team", r"DVC remote 'team': .*doesn't exist; outside a project set its URL in VIDBRIDGE_DVC_REMOTE"),
        ("/nowhere/remote", r"neither in the cache folder .*/nowhere/remote.*set VIDBRIDGE_DVC_REMOTE to the URL"),
        (
            "nothing://known/remote",
            (
                r"VIDBRIDGE_DVC_REMOTE: nothing://known/remote: not a URL of a DVC remote .*Unsupported URL type"
                r" nothing://"
            ),
        ),
        (
            "gs://bucket/remote",
            "DVC remote 'gs://bucket/remote': gs is supported, but requires 'dvc-gs' to be installed",
        ),
    ],
)
def test_a_remote_that_gives_nothing_is_one_sentence(
    cache: Path, monkeypatch: pytest.MonkeyPatch, remote: str | None, sentence: str
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    if remote is None:
        monkeypatch.delenv(REMOTE_VARIABLE)
    else:
        monkeypatch.setenv(REMOTE_VARIABLE, remote)
    session = reader()
    root = session.root
    found = find_named(session, URI)
    with pytest.raises(TrackingError, match=sentence) as said:
        load_servable(root, found)
    assert "\n" not in str(said.value)
    with pytest.raises(MlflowException, match=sentence):
        get_artifact_repository(found.source).list_artifacts()
    assert not list((cache / "files").glob("md5/*/*"))


@pytest.mark.parametrize("path", ["final/../../../../outside", "/tmp/vidbridge-test/file", "final"])
def test_a_poisoned_list_places_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    remote = tmp_path / "remote"
    entries = [
        {"md5": put(remote, b'{"model_type": "tiny"}'), "relpath": "final/config.json"},
        {"md5": put(remote, b"evil"), "relpath": path},
    ]
    source = Source(put(remote, json.dumps(entries).encode(), ".dir"), "final")
    monkeypatch.setenv(REMOTE_VARIABLE, str(remote))
    session = reader()
    root = session.root
    with pytest.raises(ListError, match="nothing of it was placed"), open_content(root) as content:
        content.place(source, tmp_path / "target")
    with pytest.raises(Exception, match="nothing of it was placed"):
        get_artifact_repository(source.uri).download_artifacts("", str(tmp_path))
    # The list itself and nothing else was fetched.
    assert len(list((cache / "files/md5").glob("*/*"))) == 1
    assert not (tmp_path / "target").exists()


def test_an_object_counts_once_its_hash_was_looked_at(cache: Path, template: Path, tmp_path: Path) -> None:
    """A process that was killed, or is still working, leaves an object that was not verified."""
    session = reader()
    root = session.root
    found = find_named(session, URI)
    source = parse_source(found.source)
    with open_content(root) as content:
        weights = content.files(source.oid)["final/model.safetensors"]
        object_ = Path(content.cache.oid_to_path(weights))
        object_.parent.mkdir(parents=True, exist_ok=True)
        object_.write_bytes(b"other weights" * (1 << 18))
        content.place(source, tmp_path / "out", strip="final")
    theirs = template / ".vidbridge/remote/files/md5" / weights[:2] / weights[2:]
    assert (tmp_path / "out/model.safetensors").read_bytes() == theirs.read_bytes()
    # Other content from a remote is rejected.
    shutil.rmtree(cache)
    remote = tmp_path / "remote"
    shutil.copytree(template / ".vidbridge/remote", remote)
    there = remote / "files/md5" / weights[:2] / weights[2:]
    there.chmod(0o644)
    there.write_bytes(b"other weights")
    os.environ[REMOTE_VARIABLE] = str(remote)
    with pytest.raises(
        TrackingError, match=f"{weights} is neither in the cache folder .* nor, undamaged, in the remote"
    ):
        load_version(reader().root, found)


def test_several_at_once_put_one_model_together(cache: Path) -> None:
    session = reader()
    root = session.root
    found = find_named(session, URI)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: load_version(root, found), range(4)))
    (folder,) = folders
    assert names(folder) == ["config.json", "model.safetensors"]
    assert sorted(names(folder.parent)) == ["@list", "final"]


def test_weights_are_copied_to_another_file_system(cache: Path, tmp_path: Path) -> None:
    import tempfile

    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system only")
    session = reader()
    root = session.root
    found = find_named(session, URI)
    with tempfile.TemporaryDirectory(dir=memory) as folder, open_content(root) as content:
        content.place(parse_source(found.source), Path(folder), strip="final")
        assert (Path(folder) / "model.safetensors").stat().st_nlink == 1


def test_the_cache_folder_stays_below_its_bound(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = reader()
    root = session.root
    first, second = (load_version(root, find_named(session, f"models:/{MODEL}/{number}")) for number in (6, 7))
    # Used a moment ago: they stay, whatever the bound.
    assert prune(root, 0) == 0
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (root / ".vidbridge/loaded/link").symlink_to(outside)
    before = time.time() - 2 * 24 * 3600
    for item in removable_items(root):
        os.utime(item.path, (before, before))
    # It is used: its folder is newer than all else.
    assert load_version(root, find_named(session, f"models:/{MODEL}/7")) == second
    assert prune(root, 3 << 20) > 1 << 21
    assert (first.exists(), second.exists(), (outside / "deep").is_dir()) == (False, True, True)
    # Removed content is fetched again.
    assert load_version(root, find_named(session, f"models:/{MODEL}/6")) == first
    # Fetching prunes by itself.
    for item in removable_items(root):
        os.utime(item.path, (before, before))
    monkeypatch.setenv(SIZE_VARIABLE, "0.001")
    load_version(root, find_named(session, f"models:/{MODEL}/1"))
    assert not second.exists()
    for value in ("x", "0", "-1", "nan", "inf"):
        monkeypatch.setenv(SIZE_VARIABLE, value)
        with (
            pytest.raises(TrackingError, match=rf"VIDBRIDGE_CACHE_GB: '{value}' is not a number of GB"),
            open_content(root),
        ):
            pass
    (root / TAG_FILE).unlink()
    with pytest.raises(TrackingError, match="is not a cache folder"):
        prune(root, 0)
