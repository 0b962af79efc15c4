"""Inputs and settings of a server, tested without one: rows, files and links of its folder, limits,
the key."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.errors import InputError
from stages.tools.serving.files import open_named
from stages.tools.serving.limits import key_from_environment, limits_from_environment
from stages.tools.serving.refusal import Refused
from stages.tools.serving.requests import parse_rows
from stages.tools.serving.server import answer_row
from stages.tools.serving.videos import keep_base64
from tests.support.projects.serving import (
    QUESTION,
)


def test_a_reply_that_does_not_parse_comes_whole() -> None:
    assert answer_row("<think>red</think> red") == {"thinking": None, "answer": None, "reply": "<think>red</think> red"}


def test_an_answer_warns_of_a_video_that_looks_other_than_videos_of_training() -> None:
    row = answer_row("<think>red</think><answer>red</answer>", ("v.mp4: …",))
    assert row["warnings"] == ["v.mp4: …"]
    assert "warnings" not in answer_row("red")


def test_too_many_rows_are_refused() -> None:
    with pytest.raises(Refused, match="rows: 17 in one request; send 1 to 16"):
        parse_rows([{"question": QUESTION, "video": "a.mp4"}] * 17)


def test_without_a_folder_no_path_is_read(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="this server reads no files; send video_base64"):
        open_named(None, "deep/red.mp4", 1 << 20)
    (tmp_path / "red.mp4").write_bytes(b"x" * 2000)
    with pytest.raises(Refused, match=r"video: .* MB, 0.000977 MB are allowed \(VIDBRIDGE_SERVE_MAX_MB\)"):
        open_named(tmp_path.resolve(), "red.mp4", 1024)
    kept = keep_base64(base64.b64encode(b"abc"), 3)
    try:
        assert os.pread(kept.descriptor, 9, 0) == b"abc"
    finally:
        kept.close()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("VIDBRIDGE_SERVE_VIDEOS", "/nowhere/at/all", "is not a folder"),
        ("VIDBRIDGE_SERVE_MAX_MB", "many", "is not a number above 0"),
        ("VIDBRIDGE_SERVE_TIMEOUT_S", "-1", "is not a number above 0"),
    ],
)
def test_a_limit_that_is_none_stops_the_server_at_its_start(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name}: {value!r} {says}"):
        limits_from_environment()


def test_links_into_the_cache_of_dvc_are_files_of_the_folder_and_no_others_are(tmp_path: Path) -> None:
    folder, cache = tmp_path / "project/films", tmp_path / "project/.dvc/cache/files/md5/0a"
    folder.mkdir(parents=True)
    cache.mkdir(parents=True)
    for place, name in ((cache, "1b"), (tmp_path, "private.mp4")):
        (place / name).write_bytes(b"film")
        (folder / f"{name}.mp4").symlink_to(place / name)
    opened = open_named(folder, "1b.mp4", 1 << 20)
    status = (cache / "1b").stat()
    opened.close()
    assert (opened.key, opened.name) == ((status.st_dev, status.st_ino), "1b.mp4")
    with pytest.raises(Refused, match="not a link that leads out"):
        open_named(folder, "private.mp4.mp4", 1 << 20)


def test_a_link_that_is_swapped_in_after_the_look_is_not_followed(tmp_path: Path) -> None:
    """Replace a file, and a folder on the way to it, by links as fast as possible, as anyone who
    may write to the folder can."""
    folder = tmp_path / "films"
    (folder / "deep").mkdir(parents=True)
    for place in (folder, folder / "deep"):
        (place / "a.mp4").write_bytes(b"open")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.mp4").write_bytes(b"SECRET")
    code = """if True:
        import os, sys
        folder, outside = sys.argv[1:]
        os.chdir(folder)
        while True:
            os.symlink(f"{outside}/a.mp4", "link"); os.replace("link", "a.mp4")
            with open("file", "wb") as file: file.write(b"open")
            os.replace("file", "a.mp4")
            os.rename("deep", "kept"); os.symlink(outside, "deep")
            os.unlink("deep"); os.rename("kept", "deep")
    """
    swapping = subprocess.Popen([sys.executable, "-c", code, str(folder), str(outside)])
    said: dict[bytes | str, int] = {}
    try:
        ends = time.monotonic() + 3
        while time.monotonic() < ends:
            for name in ("a.mp4", "deep/a.mp4"):
                try:
                    opened = open_named(folder, name, 1 << 20)
                except Refused as refused:
                    found: bytes | str = "out" if "leads out" in refused.sentence else "no file"
                else:
                    found = os.pread(opened.descriptor, 9, 0)
                    opened.close()
                said[found] = said.get(found, 0) + 1
        assert swapping.poll() is None
    finally:
        swapping.kill()
        swapping.wait()
    assert set(said) <= {b"open", "out", "no file"}, said
    # It was a race: each of the outcomes happened, and the last only if something changed between
    # check and opening.
    assert {b"open", "out"} <= set(said), said


@pytest.mark.parametrize(
    ("key", "says"), [("short", "5 characters; set at least 16"), ("with a space in its middle", "without spaces")]
)
def test_a_key_that_is_none_is_refused(key: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDBRIDGE_SERVE_KEY", key)
    with pytest.raises(InputError, match=says) as refused:
        key_from_environment()
    assert key not in str(refused.value)
