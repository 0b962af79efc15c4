"""Links into stores of content and linked folders are followed; a link to a file anywhere else is
refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.lib.annotations.activitynet_captions import read_activitynet_captions
from stages.lib.annotations.annotation import videos_in
from stages.lib.annotations.jsonl import read_annotations

ENTRY = {"duration": 3.0, "timestamps": [[0, 1]], "sentences": ["It moves."]}


def _annotate(folder: Path, *videos: str) -> Path:
    """Both formats about the same videos."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "annotations.jsonl").write_text("".join(json.dumps({"video": video}) + "\n" for video in videos))
    (folder / "train.json").write_text(json.dumps({Path(video).stem: ENTRY for video in videos}))
    return folder


def _outcome(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Videos that were accepted, reasons and details of the others: the same in both formats."""
    rows, rejects, *_ = read_annotations(folder)
    others, other_rejects, *_ = read_activitynet_captions(folder)
    assert [row.video for row in rows] == [row.video for row in others]
    said = [(reject.reason, reject.detail) for reject in rejects]
    assert said == [
        (reject.reason, reject.detail.replace("train.json", "annotations.jsonl")) for reject in other_rejects
    ]
    return [row.video for row in rows], said


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "big disk" / "films"
    folder.mkdir(parents=True)
    (folder / "a.mp4").write_text("a")
    return folder


def test_a_folder_that_is_itself_a_link_is_a_folder(elsewhere: Path, tmp_path: Path) -> None:
    _annotate(elsewhere, "a.mp4")
    (tmp_path / "source").symlink_to(elsewhere)
    assert _outcome(tmp_path / "source") == (["a.mp4"], [])


@pytest.mark.parametrize("at", ["videos", "deep/below/videos"])
def test_a_folder_linked_into_the_source_is_read_wherever_it_leads(at: str, elsewhere: Path, tmp_path: Path) -> None:
    source = _annotate(tmp_path / "source", f"{at}/a.mp4")
    link = source / at
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere)
    (elsewhere / "again").symlink_to(elsewhere)
    assert _outcome(source) == ([f"{at}/a.mp4"], [])
    assert videos_in(source) == {f"{at}/a.mp4"}


def test_a_linked_file_that_leads_out_is_refused_also_behind_a_linked_folder(elsewhere: Path, tmp_path: Path) -> None:
    source = _annotate(tmp_path / "source", "b.mp4", "videos/c.mp4")
    (tmp_path / "secret.mp4").touch()
    (source / "b.mp4").symlink_to(elsewhere / "a.mp4")
    (source / "videos").symlink_to(elsewhere)
    (elsewhere / "c.mp4").symlink_to(tmp_path / "secret.mp4")
    accepted, said = _outcome(source)
    assert accepted == []
    remedy = "is a link that leaves the folder; link the folder that the file stands in, or name that as source"
    assert said[:2] == [("outside-folder", f"video: {video!r} {remedy}") for video in ("b.mp4", "videos/c.mp4")]
    assert [detail.partition(":")[0] for _, detail in said[2:]] == ["videos/a.mp4"]
    # A path that climbs out of a linked folder is not one of its files.
    _annotate(source, "videos/../../secret.mp4")
    assert read_annotations(source)[1][0].reason == "outside-folder"


def _dvc(folder: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments, "-q"], cwd=folder, check=True, timeout=120)


@pytest.mark.parametrize("kind", ["symlink", pytest.param("hardlink", marks=pytest.mark.slow), "copy"])
@pytest.mark.parametrize("shared", [False, True])
def test_what_dvc_has_linked_into_its_cache_is_read(
    kind: str, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    source = _annotate(project / "films", "a.mp4", "more/b.mp4")
    (source / "more").mkdir()
    for video in ("a.mp4", "more/b.mp4"):
        (source / video).write_text(video)
    _dvc(project, "init", "--no-scm")
    _dvc(project, "config", "cache.type", kind)
    if shared:
        _dvc(project, "cache", "dir", str(tmp_path / "shared cache"))
    _dvc(project, "add", "films")
    assert (source / "a.mp4").is_symlink() == (kind == "symlink")
    monkeypatch.chdir(tmp_path)
    assert _outcome(source) == (["a.mp4", "more/b.mp4"], [])
    # Files in another project's cache belong to that project.
    other = _annotate(tmp_path / "other", "a.mp4")
    shutil.copy(source / "a.mp4", other, follow_symlinks=False)
    if kind == "symlink":
        assert _outcome(other)[1][0][0] == "outside-folder"
        # … unless it is the current project.
        monkeypatch.chdir(project)
        assert _outcome(other) == (["a.mp4"], [])


def test_snapshots_of_the_hub_and_annexed_files_are_read(tmp_path: Path) -> None:
    hub = tmp_path / "hub" / "datasets--someone--films"
    (hub / "blobs").mkdir(parents=True)
    (hub / "blobs" / "0a").touch()
    snapshot = _annotate(hub / "snapshots" / "5c", "a.mp4")
    (snapshot / "a.mp4").symlink_to("../../blobs/0a")
    assert _outcome(snapshot) == (["a.mp4"], [])
    annexed = _annotate(tmp_path / "annexed" / "films", "a.mp4")
    objects = tmp_path / "annexed" / ".git" / "annex" / "objects" / "x"
    objects.mkdir(parents=True)
    (objects / "key.mp4").touch()
    (annexed / "a.mp4").symlink_to(objects / "key.mp4")
    assert _outcome(annexed) == (["a.mp4"], [])


def test_a_name_that_no_file_system_has_is_missing(tmp_path: Path) -> None:
    folder = _annotate(tmp_path, "a\ud800.mp4", "x" * 300 + ".mp4")
    rows, rejects, *_ = read_annotations(folder)
    assert rows == []
    assert [reject.reason for reject in rejects] == ["bad-annotation", "missing-file"]
