"""Forms of video beside MP4: frame folders, GIF, raw streams, Ogg/Theora, 3GP. Right frames and
right times, or a reason."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stages.domain.core.records import Clip, Reject
from stages.domain.core.timeline import plain
from stages.ingest import examine as examining
from stages.ingest.examine import copy_normalised, examine_source, journal_file
from stages.lib.video.errors import VideoError
from stages.lib.video.folders import pictures_of, state_of
from stages.lib.video.loader import FrameLoader
from stages.params import IngestParams, Validation, load_params
from tests.support.checkout import ROOT
from tests.support.video.numbered_frames import FRAMES, draw_numbers, read_numbers

ALL = list(range(FRAMES))
SAMPLED = Validation(mode="sampled", whole_up_to=0)


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examining, "map_items", lambda work, items, *_, **__: map(work, items))


def pictures(folder: Path, numbers: list[int] = ALL, name: str = "frame_{:05d}.png", first: int = 1) -> Path:
    folder.mkdir(parents=True)
    for place, pixels in enumerate(draw_numbers(numbers), start=first):
        Image.fromarray(pixels).save(folder / name.format(place))
    return folder


def ingest(
    folder: Path, *rows: dict[str, Any], again: Path | None = None, **changes: Any
) -> tuple[list[Clip], list[Reject]]:
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    params: IngestParams = load_params(ROOT / "params.yaml").ingest.model_copy(
        update={"source": str(folder), "normalise": again is not None, **changes}
    )
    journal = None if again is None else again / "journal.jsonl"
    clips, rejects, *_ = examine_source(params, 7, journal)
    if again is not None and journal is not None:
        copy_normalised(clips, journal, again)
    return clips, rejects


def shown(clip: Clip, folder: Path, again: Path | None = None) -> list[int]:
    loader = FrameLoader({clip.clip_id: clip}, folder, cache_bytes=0, manifest=again)
    return read_numbers(loader.frames(plain(clip.clip_id, clip.frames, clip.rate), range(clip.frames)))


@pytest.mark.parametrize("mended", [False, True], ids=["as it is", "re-encoded"])
def test_a_frame_folder_is_a_video_at_its_stated_rate(tmp_path: Path, mended: bool) -> None:
    folder, again = tmp_path / "source", tmp_path / "again" if mended else None
    pictures(folder / "a/clip.v1")
    pictures(folder / "b", name="{:d}.png", first=7)  # natural order: 7, 8, 9, 10 …
    (folder / "b/notes.txt").write_text("no picture")
    event = {"start": 1, "end": 1.52, "caption": "numbers rise"}
    (ten, event_ten), (by_default, _) = [
        (clip, clip.events)
        for clip in ingest(
            folder,
            {"video": "a/clip.v1", "rate": 25, "id": "a", "events": [event]},
            {"video": "b", "id": "b", "events": [event]},
            again=again,
            frame_rate=Fraction(30000, 1001),
        )[0]
    ]
    assert (ten.rate, ten.frames, ten.width, ten.height) == (25, 60, 64, 64)
    assert (event_ten[0].span.start, event_ten[0].span.stop) == (25, 38)
    assert by_default.rate == Fraction(30000, 1001)
    assert ten.hazards == (() if mended else ("frame-folder",))
    for clip in (ten, by_default):
        assert shown(clip, folder, again) == ALL


def test_one_folder_at_two_rates_is_two_videos(tmp_path: Path) -> None:
    """What is encoded again is named by its content and its rate."""
    folder = tmp_path / "source"
    for name in ("a", "b"):
        pictures(folder / name, ALL[: 20 if name == "a" else 21])
    shutil.copytree(folder / "a", folder / "c")
    (folder / "c/frame_00020.png").rename(folder / "c/frame_00021.png")
    rows = [{"video": "a", "rate": 5, "id": "a"}, {"video": "b", "rate": 10, "id": "b"}]
    clips, rejects = ingest(folder, *rows, {"video": "c", "rate": 5, "id": "c"}, again=tmp_path / "again")
    assert [(clip.clip_id, clip.rate, clip.frames) for clip in clips] == [("a", 5, 20), ("b", 10, 21)]
    assert [(reject.item, reject.reason) for reject in rejects] == [("c", "frame-numbers")]
    assert "between frame_00019.png and frame_00021.png pictures are missing" in rejects[0].detail
    clips, _ = ingest(folder, {**rows[0], "rate": 8}, again=tmp_path / "again")
    assert [(clip.rate, shown(clip, folder, tmp_path / "again")) for clip in clips] == [(8, ALL[:20])]


def _drop(folder: Path) -> None:
    (folder / "frame_00031.png").unlink()


def _double(folder: Path) -> None:
    shutil.copy(folder / "frame_00031.png", folder / "other_31.png")


def _unnumber(folder: Path) -> None:
    shutil.copy(folder / "frame_00031.png", folder / "cover.png")


def _cut_off(folder: Path) -> None:
    whole = (folder / "frame_00031.png").read_bytes()
    (folder / "frame_00031.png").write_bytes(whole[: len(whole) // 2])


def _shrink(folder: Path) -> None:
    Image.new("RGB", (32, 32)).save(folder / "frame_00031.png")


def _empty(folder: Path) -> None:
    for picture in folder.iterdir():
        picture.unlink()


@pytest.mark.parametrize(
    ("change", "reason", "says"),
    [
        (_drop, "frame-numbers", "between frame_00030.png and frame_00032.png pictures are missing; extract"),
        (_double, "frame-numbers", "frame_00031.png and other_31.png have one number; keep one sequence"),
        (_unnumber, "frame-numbers", "cover.png has no number; rename it"),
        (_cut_off, "damaged", "a/frame_00031.png: "),
        (_shrink, "damaged", "a/frame_00031.png: 32x32, the first picture is 64x64; give all one size"),
        (_empty, "no-frames", "a folder without a picture"),
        (lambda _: None, "no-frame-rate", "state it: rate in the row, or ingest.frame_rate"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_used_is_set_aside(
    tmp_path: Path, change: Callable[[Path], None], reason: str, says: str
) -> None:
    change(pictures(tmp_path / "a"))
    clips, rejects = ingest(tmp_path, {"video": "a"} | ({} if reason == "no-frame-rate" else {"rate": 10}))
    assert not clips
    assert [reject.reason for reject in rejects] == [reason]
    assert says in rejects[0].detail


def test_a_sampled_validation_leaves_a_damaged_picture_to_the_reader(tmp_path: Path) -> None:
    _cut_off(pictures(tmp_path / "a"))
    clips, rejects = ingest(tmp_path, {"video": "a", "rate": 10}, validation=SAMPLED)
    assert not rejects
    assert read_numbers(FrameLoader({"a": clips[0]}, tmp_path, 0).frames(plain("a", 60, Fraction(10)), [29, 31])) == [
        29,
        31,
    ]
    with pytest.raises(VideoError, match=r"damaged.*a/frame_00031.png"):
        shown(clips[0], tmp_path)


def test_a_folder_is_looked_at_again_when_one_picture_changes(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a")
    before = state_of(folder)
    content = (folder / "frame_00031.png").read_bytes()
    later = (folder / "frame_00031.png").stat().st_mtime_ns + 10**9
    (folder / "frame_00031.png").write_bytes(content)
    os.utime(folder / "frame_00031.png", ns=(later, later))
    assert state_of(folder) != before
    assert [entry.name for entry in pictures_of(folder)][:2] == ["frame_00001.png", "frame_00002.png"]


def test_a_picture_linked_from_elsewhere_is_not_read(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "source/a")
    secret = pictures(tmp_path / "secret", [7])
    (folder / "frame_00061.png").symlink_to(secret / "frame_00001.png")
    clips, rejects = ingest(tmp_path / "source", {"video": "a", "rate": 10})
    assert not clips
    assert [reject.reason for reject in rejects] == ["outside-folder"]
    assert "a/frame_00061.png is a link that leaves the folder" in rejects[0].detail


@pytest.mark.parametrize("mended", [False, True], ids=["as it is", "re-encoded"])
@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("clip.gif", ()),
        ("clip.ogv", ("-c:v", "libtheora", "-q:v", "8")),
        ("clip.3gp", ("-c:v", "mpeg4", "-q:v", "2")),
        ("clip.h264", ("-c:v", "libx264", "-bf", "2")),
        ("clip.h265", ("-c:v", "libx265", "-x265-params", "log-level=none:bframes=2")),
    ],
)
def test_each_container_gives_its_frames(
    name: str, codec: tuple[str, ...], mended: bool, make: Callable[..., Path], tmp_path: Path
) -> None:
    video = make(name, *codec)
    folder, again = video.parent, tmp_path if mended else None
    row = {"video": name, "events": [{"start": 2, "end": 2.5, "caption": "numbers rise"}]}
    clips, rejects = ingest(folder, row, again=again)
    assert [clip.clip_id for clip in clips] == ["clip"], [reject for reject in rejects if "clip" in reject.item]
    assert (clips[0].rate, clips[0].frames, clips[0].variable_rate) == (10, 60, False)
    assert (clips[0].events[0].span.start, clips[0].events[0].span.stop) == (20, 25)
    assert shown(clips[0], folder, again) == ALL
    assert clips[0].decord_safe == mended


def test_an_animation_holds_its_pictures_as_long_as_it_says(tmp_path: Path) -> None:
    """Pictures of 0.1, 0.3 and 1.2 s; the last one counts too."""
    held = [Image.fromarray(pixels).convert("P") for pixels in draw_numbers([3, 5, 9, 17])]
    held[0].save(tmp_path / "a.gif", save_all=True, append_images=held[1:], duration=[100, 300, 400, 1200], loop=0)
    clips, _ = ingest(tmp_path, {"video": "a.gif"}, min_frames=2)
    assert clips[0].variable_rate
    assert clips[0].frames / clips[0].rate == 2
    seconds = [Fraction(2 * slot + 1, 2) / clips[0].rate for slot in range(clips[0].frames)]
    assert shown(clips[0], tmp_path) == [
        3 if at < Fraction(1, 10) else 5 if at < Fraction(4, 10) else 9 if at < Fraction(8, 10) else 17
        for at in seconds
    ]


def test_a_raw_stream_without_a_rate_needs_one(make: Callable[..., Path]) -> None:
    video = make("untimed.h264", "-c:v", "libopenh264", "-b:v", "1M")
    clips, rejects = ingest(video.parent, {"video": video.name})
    assert not clips
    assert ("untimed", "no-frame-rate") in [(reject.item, reject.reason) for reject in rejects]
    for changes, row, rate in (
        ({"frame_rate": Fraction(10)}, {}, 10),
        ({"frame_rate": Fraction(10)}, {"rate": 20}, 20),
        ({}, {"rate": "15/2"}, Fraction(15, 2)),
    ):
        clips, _ = ingest(video.parent, {"video": video.name, **row}, **changes)
        assert [(clip.rate, clip.frames) for clip in clips] == [(rate, 60)]
        assert shown(clips[0], video.parent) == ALL


def test_another_rate_is_another_journal(tmp_path: Path) -> None:
    params = load_params(ROOT / "params.yaml").ingest.model_copy(update={"source": str(tmp_path)})
    files = {
        journal_file(params.model_copy(update={"frame_rate": rate})) for rate in (None, Fraction(10), Fraction(25))
    }
    assert len(files) == 3
