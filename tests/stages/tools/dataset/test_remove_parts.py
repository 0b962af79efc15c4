"""A removal takes a whole file, whichever of its parts it is named by."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stages.domain.core.records import Excerpt
from stages.lib.rows.jsonl import write_rows
from stages.params import load_params
from stages.runtime import paths
from stages.tools.dataset.remove import RemovalError, find
from tests.support.builders import clip
from tests.support.checkout import ROOT

SHA256 = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a.mp4", "b.mkv")}


@pytest.fixture
def session(tmp_path: Path) -> Any:
    """A project with two segments of one file, and another file that ingest has divided and encoded
    again."""
    source = tmp_path / "videos"
    source.mkdir()
    rows = [{"video": "a.mp4", "start": n, "end": n + 1} for n in range(2)] + [{"video": "b.mkv"}]
    (source / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in SHA256:
        (source / name).write_bytes(name.encode())
    segments = [
        clip(clip_id=f"a@{n}-{n + 1}", path="a.mp4", sha256=SHA256["a.mp4"], split="train", excerpt=_part(n))
        for n in range(2)
    ]
    parts = [
        clip(
            clip_id=f"b@{n * 2}-{n * 2 + 2}",
            path="normalised/x.mp4",
            sha256=SHA256["b.mkv"],
            split="test",
            normalised=True,
            excerpt=_part(n),
        )
        for n in range(2)
    ]
    write_rows(tmp_path / paths.CLIPS / paths.MANIFEST_FILE, [*segments, *parts])
    params = load_params(ROOT / "params.yaml")
    ingest = params.ingest.model_copy(update={"source": "videos"})
    return SimpleNamespace(root=tmp_path, params=params.model_copy(update={"ingest": ingest}), content=None)


def _part(number: int) -> Excerpt:
    return Excerpt(first=16 * number, file_frames=32)


@pytest.mark.parametrize("name", ["a.mp4", "a@0-1", "a@1-2", SHA256["a.mp4"]])
def test_a_segment_names_its_file_with_all_segments(name: str, session: Any) -> None:
    (video,) = find(session, [name], ())
    assert (video.path, video.clip_ids, video.splits) == ("a.mp4", ("a@0-1", "a@1-2"), ("train",))
    assert [entry.sha256 for entry in video.videos] == [SHA256["a.mp4"]]


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("name", ["b.mkv", "b", "b@0-2", "b@2-4", SHA256["b.mkv"]])
def test_a_part_of_a_divided_recording_names_the_recording(name: str, gone: bool, session: Any) -> None:
    if gone:
        # It is no longer in the folder, and its manifest still names it.
        (session.root / "videos/b.mkv").write_bytes(b"another")
    (video,) = find(session, [name], ())
    assert (video.path, video.splits) == ("b.mkv", ("test",))
    assert set(video.clip_ids) == {"b", "b@0-2", "b@2-4"}
    assert [entry.sha256 for entry in video.videos] == [SHA256["b.mkv"]]


def test_several_parts_are_one_request(session: Any) -> None:
    assert [video.path for video in find(session, ["a@0-1", "a@1-2", "b@0-2"], ())] == ["a.mp4", "b.mkv"]
    with pytest.raises(RemovalError, match="'a@5-6' is neither a path"):
        find(session, ["a@5-6"], ())
