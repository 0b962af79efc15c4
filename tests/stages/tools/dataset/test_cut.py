"""Cutting recordings into clips at shots: how they are divided, what is written, and what is
refused."""

from __future__ import annotations

import json
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.domain.core.records import Span
from stages.errors import InputError
from stages.ingest import examine as examining
from stages.lib.annotations.annotation import SourceError
from stages.lib.video.encoder import encode
from stages.params import load_params
from stages.runtime.workers import advance, map_items
from stages.tools.dataset.cut import Cut, Lengths, cut, parts
from tests.support.checkout import ROOT

PLAIN = Lengths(Fraction(2), Fraction(5), join=False)
JOINED = Lengths(Fraction(2), Fraction(5), join=True)


def lengths(frames: int, shots: tuple[int, ...], chosen: Lengths) -> list[int]:
    return [part.frames for part in parts(frames, Fraction(1), shots, chosen)]


def test_shots_are_divided_evenly_and_short_ones_joined() -> None:
    assert lengths(12, (), PLAIN) == [4, 4, 4]
    assert lengths(10, (3, 4), PLAIN) == [3, 1, 3, 3]
    assert lengths(10, (3, 4), JOINED) == [3, 3, 4]
    assert lengths(10, (9,), JOINED) == [5, 5], "the last one is joined to the one before it"
    assert lengths(1, (), JOINED) == [1], "a recording that is too short itself"


def test_no_part_is_longer_by_a_fraction_of_a_frame() -> None:
    rate = Fraction(30000, 1001)
    found = parts(599, rate, (), Lengths(Fraction(2), Fraction(10), join=False))
    assert [part.frames for part in found] == [199, 200, 200]
    assert all(part.frames / rate <= 10 for part in found), "ingest would reject it as too long"


@given(
    st.integers(1, 400),
    st.sets(st.integers(1, 399)),
    st.integers(1, 10),
    st.integers(2, 5),
    st.booleans(),
    st.integers(1, 30),
)
def test_parts_cover_the_recording_and_keep_to_the_lengths(
    frames: int, cuts: set[int], least: int, times: int, join: bool, rate: int
) -> None:
    shots = sorted(cut for cut in cuts if cut < frames)
    chosen = Lengths(Fraction(least), Fraction(least * times), join)
    found = parts(frames, Fraction(rate), shots, chosen)
    edges = [found[0].start, *(part.stop for part in found)]
    assert (edges[0], edges[-1]) == (0, frames)
    assert all(before.stop == after.start for before, after in zip(found, found[1:], strict=False))
    assert all(part.frames <= chosen.most_s * rate for part in found)
    if join:
        assert len(found) == 1 or all(part.frames >= least * rate - 1 for part in found)
    else:
        assert set(shots) <= set(edges), "no part shows two shots"
    assert all(isinstance(part, Span) for part in found)


def film(seeds: tuple[int, ...], frames: int = 24) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    grounds = [np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8) for seed in seeds]
    return np.concatenate([ground.repeat(16, 0).repeat(16, 1)[None].repeat(frames, 0) for ground in grounds])


def call(folder: Path, out: Path) -> Cut:
    params = load_params(ROOT / "params.yaml")
    # A cut looks at every frame of its folder, whatever ingest decodes, and from where.
    sampled = params.ingest.validation.model_copy(update={"mode": "sampled"})
    elsewhere = {"validation": sampled, "videos": "s3://bucket/films"}
    params = params.model_copy(update={"ingest": params.ingest.model_copy(update=elsewhere)})
    return cut(params, folder, out, PLAIN, 60, in_project=False)


def test_a_cut_is_written_goes_on_and_replaces_only_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VIDBRIDGE_WORKERS", "1")
    folder, out = tmp_path / "films", tmp_path / "films/annotations.jsonl"
    (folder / "tv").mkdir(parents=True)
    encode(film((1, 2, 3)), Fraction(8), folder / "tv/news.mp4", crf=18)
    (folder / "broken.mp4").write_text("no video")
    found = call(folder, out)
    assert (found.recordings, found.shots, found.clips, found.short) == (1, 3, 3, 0)
    assert "| 9/9 [" in (bar := capsys.readouterr().err), bar
    assert "s of video" in bar
    assert [(reject.item, reject.reason) for reject in found.rejects] == [("broken.mp4", "not-a-video")]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == [
        {"video": "tv/news.mp4", "start": 3.0 * n, "end": 3.0 * (n + 1), "source": "tv/news"} for n in range(3)
    ]
    before = out.read_bytes()
    # A second call decodes nothing, and gives the same.
    monkeypatch.setattr(examining, "_examined", lambda videos, *_: iter([]) if not videos else pytest.fail(str(videos)))
    assert call(folder, out).clips == 3
    assert out.read_bytes() == before
    out.write_text('{"video": "tv/news.mp4", "caption": "by hand"}\n')
    with pytest.raises(InputError, match="holds annotations that are not of this command; name another file"):
        call(folder, out)
    assert "by hand" in out.read_text()


def half_done(item: str) -> str:
    """Tell that 30 of the item's seconds are done, and take long over the rest."""
    advance(30.0)
    time.sleep(2.2)
    return item


def test_the_bar_moves_within_a_recording(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("VIDBRIDGE_WORKERS", "1")
    assert list(map_items(half_done, ["a.mp4"], "cut", timeout_s=60, unit=" s of video", sizes=[60.4])) == ["a.mp4"]
    shown = capsys.readouterr().err
    assert "| 30/60 [" in shown
    assert "| 60/60 [" in shown
    advance(1.0)  # in no map with sizes: nobody is told


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no video"):
        call(tmp_path, tmp_path / "out.jsonl")
    with pytest.raises(SourceError, match="is not a folder"):
        call(tmp_path / "gone", tmp_path / "out.jsonl")
