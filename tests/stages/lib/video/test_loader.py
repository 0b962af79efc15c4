"""Edits at load time: the model sees the frames of the edit list, and memory stays within its
bound."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.domain.core.records import Clip, Segment, Span
from stages.domain.core.timeline import SamplingRate, interleave, mask, plain, resolve, sample_indices
from stages.lib.video import loader as edits
from stages.lib.video.encoder import encode
from stages.lib.video.errors import VideoError
from stages.lib.video.loader import FrameLoader, load_video
from stages.lib.video.reader import read_frames
from stages.params import load_params
from stages.synthesize import contact_sheets
from stages.synthesize.contact_sheets import SheetRow, contact_sheet, sample_sheet
from stages.tools.serving.decode import DecodeRequest, load_bounded
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.servable import parse_usage, usage_of
from tests.support.builders import sample_about
from tests.support.checkout import ROOT
from tests.support.video.numbered_frames import FRAMES, RATE, draw_numbers, read_numbers

SHOWN = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    encode(draw_numbers(list(range(FRAMES))), RATE, folder / "a.mp4", crf=10)
    encode(draw_numbers(list(range(1000, 1000 + FRAMES))), RATE, folder / "b.mp4", crf=10)
    encode(draw_numbers(list(range(2000, 2000 + FRAMES)), size=128)[:, :, 32:96], RATE, folder / "tall.mp4", crf=10)
    return folder


def _clip(name: str, width: int = 64, height: int = 64) -> Clip:
    return Clip(
        clip_id=name,
        source_id=name,
        path=f"{name}.mp4",
        sha256="0" * 64,
        split="train",
        frames=FRAMES,
        rate=RATE,
        width=width,
        height=height,
        codec="h264",
    )


CLIPS = {"a": _clip("a"), "b": _clip("b"), "tall": _clip("tall", 64, 128)}


_sample = partial(sample_about, shown=SHOWN)


MASKED = mask(plain("a", FRAMES, RATE), Span(start=20, stop=40))
MIXED = interleave(
    [Segment(clip_id="a", span=Span(start=0, stop=30)), Segment(clip_id="a", span=Span(start=30, stop=60))],
    [Segment(clip_id="b", span=Span(start=0, stop=30)), Segment(clip_id="b", span=Span(start=30, stop=60))],
    RATE,
)


@pytest.fixture(params=["whole clips", "samples only"])
def loader(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> FrameLoader:
    if request.param == "samples only":
        monkeypatch.setattr(edits, "WHOLE_CLIP_BYTES", 0)
    return FrameLoader(CLIPS, folder, cache_bytes=100_000_000)


def test_a_masked_sample_is_plain_reading_and_a_mask(loader: FrameLoader, folder: Path) -> None:
    frames = loader.load(_sample(MASKED))
    assert frames.indices == sample_indices(FRAMES, SHOWN)
    assert (frames.total, frames.rate) == (FRAMES, RATE)
    expected, _ = read_frames(folder / "a.mp4", frames.indices)
    expected = expected.copy()
    expected[[20 <= index < 40 for index in frames.indices]] = 0
    assert np.array_equal(frames.pixels, expected)
    assert np.array_equal(loader.load(_sample(MASKED)).pixels, expected)
    # The mask is the sample's own: the same clip unmasked has no dark frame.
    assert read_numbers(loader.load(_sample(plain("a", FRAMES, RATE), "plain")).pixels) == list(frames.indices)


def test_an_interleaved_sample_shows_each_clips_own_frames(loader: FrameLoader) -> None:
    frames = loader.load(_sample(MIXED))
    shown = [index % 30 + 30 * (index // 60) + 1000 * (index // 30 % 2) for index in frames.indices]
    assert read_numbers(frames.pixels) == shown


def test_each_clip_is_read_once_a_sample_and_dark_frames_never(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "WHOLE_CLIP_BYTES", 0)
    reads: list[tuple[str, int]] = []

    def counting(path: Path, indices: list[int], **options: object) -> object:
        reads.append((path.name, len(indices)))
        return read_frames(path, indices, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(edits, "read_frames", counting)
    loader = FrameLoader(CLIPS, folder, cache_bytes=100_000_000)
    loader.load(_sample(MIXED, "mixed"))
    assert reads == [("a.mp4", 6), ("b.mp4", 6)]
    loader.load(_sample(MASKED, "masked"))
    assert reads[2:] == [("a.mp4", 8)]
    assert loader.stats.decord == 20
    loader.load(_sample(MASKED, "masked"))
    assert len(reads) == 3


def test_all_dark_keeps_its_size(folder: Path) -> None:
    dark = mask(plain("tall", FRAMES, RATE), Span(start=0, stop=FRAMES))
    frames = FrameLoader(CLIPS, folder, cache_bytes=0).load(_sample(dark))
    assert frames.pixels.shape == (SHOWN, 128, 64, 3)
    assert not frames.pixels.any()


def test_memory_stays_within_its_bound(folder: Path) -> None:
    one_clip = FRAMES * 64 * 64 * 3
    loader = FrameLoader(CLIPS, folder, cache_bytes=one_clip + 1)
    for name in ("a", "b", "a", "b"):
        loader.load(_sample(plain(name, FRAMES, RATE), name))
        assert loader.held_bytes == one_clip
    assert loader.stats.decord == 4 * FRAMES
    keeps_none = FrameLoader(CLIPS, folder, cache_bytes=0)
    keeps_none.load(_sample(MIXED))
    assert keeps_none.held_bytes == 0


def test_what_is_kept_cannot_be_changed(loader: FrameLoader) -> None:
    frames = loader.load(_sample(MASKED))
    with pytest.raises(ValueError, match="read-only"):
        frames.pixels[0] = 7


def test_another_size_is_fitted_to_the_first_clips(folder: Path) -> None:
    both = interleave(
        [Segment(clip_id="a", span=Span(start=0, stop=30))],
        [Segment(clip_id="tall", span=Span(start=0, stop=30))],
        RATE,
    )
    frames = FrameLoader(CLIPS, folder, cache_bytes=0).load(_sample(both))
    assert frames.pixels.shape == (SHOWN, 64, 64, 3)
    fitted = frames.pixels[-1]
    assert not fitted[:, :16].any()
    assert not fitted[:, 48:].any()
    assert fitted[:, 16:48].min() > 0


def test_an_outline_is_the_frames_without_their_pixels(folder: Path, tmp_path: Path) -> None:
    """No file is read: there is none in this folder."""
    empty = FrameLoader(CLIPS, tmp_path, cache_bytes=0)
    for timeline in (MASKED, MIXED, plain("tall", FRAMES, RATE)):
        shown, outline = (
            FrameLoader(CLIPS, folder, cache_bytes=0).load(_sample(timeline)),
            empty.outline(_sample(timeline)),
        )
        assert outline.pixels.shape == shown.pixels.shape
        assert (outline.indices, outline.total, outline.rate) == (shown.indices, shown.total, shown.rate)
        assert not outline.pixels.any()


def test_an_unknown_clip_is_named(folder: Path) -> None:
    with pytest.raises(KeyError, match="clip 'ghost' is not in the manifest; run synthesize again"):
        FrameLoader(CLIPS, folder, 0).load(_sample(plain("ghost", 9, RATE)))


def test_any_file_can_be_loaded(folder: Path, make: Callable[..., Path]) -> None:
    for path in (folder / "a.mp4", make("any.ts", "-c:v", "libx264")):
        frames = load_video(path, 5)
        assert read_numbers(frames.pixels) == list(frames.indices) == [0, 15, 30, 44, 59]
        assert frames.times_s[-1] == Fraction(59, 10)


def test_a_contact_sheet_shows_mask_and_interleave(folder: Path, tmp_path: Path) -> None:
    loader = FrameLoader(CLIPS, folder, cache_bytes=100_000_000)
    sample_sheet(
        "two tasks", [_sample(MASKED, "masked"), _sample(MIXED, "mixed")], loader, tmp_path / "sheets" / "both.png"
    )
    with Image.open(tmp_path / "sheets" / "both.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in ((214, 60, 160), (22, 110, 190), (222, 120, 10)):
        assert (pixels == colour).all(axis=1).sum() > 1000
    assert (pixels == 0).all(axis=1).sum() > 4 * 100 * 100


@pytest.mark.parametrize("text", ["Straße, café – naïve", "кот прыгает", "η γάτα πηδά"])
def test_a_contact_sheet_draws_the_letters_of_other_languages(text: str, folder: Path, tmp_path: Path) -> None:
    assert contact_sheets._is_drawn(text)
    assert contact_sheets.NOT_DRAWN not in _drawn(text, folder, tmp_path)


def test_a_contact_sheet_says_where_letters_are_drawn_as_boxes(folder: Path, tmp_path: Path) -> None:
    assert contact_sheets.NOT_DRAWN in _drawn("一只猫跳起来", folder, tmp_path)


def _drawn(text: str, folder: Path, tmp_path: Path) -> str:
    """Text of a sheet of one sample below its frames."""
    frames = FrameLoader(CLIPS, folder, 0).load(_sample(MASKED))
    row = SheetRow("x", frames, resolve(MASKED, frames.indices), "what?", text)
    contact_sheet([row], tmp_path / "sheet.png")
    return " ".join(line for line, _ in contact_sheets._texts(row, 2000))


def test_plain_text_is_drawn_in_the_font_that_it_always_was() -> None:
    assert contact_sheets._font(15, "A) the red bar  ·  B) it rises?").getname() == ("Aileron", "Regular")


def test_a_sheet_without_samples_is_an_error(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"rows: none for none\.png"):
        contact_sheet([], tmp_path / "none.png")
    frames = FrameLoader(CLIPS, folder, 0).load(_sample(MASKED))
    with pytest.raises(ValueError, match="0 sources for 12 frames"):
        contact_sheet([SheetRow("x", frames, (), "q", "r")], tmp_path / "x.png")


def test_a_prediction_shows_as_many_frames_as_the_length_gives(numbered: Path) -> None:
    """6 s: 12 frames at two a second, as in training; and the bounds hold."""
    for sampled, count in (
        (SamplingRate(per_second=Fraction(2), at_least=4, at_most=64), 12),
        (SamplingRate(per_second=Fraction(2), at_least=4, at_most=8), 8),
        (SamplingRate(per_second=Fraction(1, 2), at_least=4, at_most=8), 4),
        (6, 6),
    ):
        for shown in (load_video(numbered, sampled), load_bounded(DecodeRequest(numbered, sampled, 1 << 20))):
            assert shown.indices == sample_indices(60, count)
            assert read_numbers(shown.pixels) == list(shown.indices)
    with pytest.raises(VideoError, match="too-large"):
        load_bounded(
            DecodeRequest(numbered, SamplingRate(per_second=Fraction(2), at_least=4, at_most=64), 12 * 64 * 64)
        )


def test_the_settings_of_requests_keep_a_rate() -> None:
    params = load_params(ROOT / "params.yaml")
    rate = SamplingRate(per_second=Fraction(2), at_least=4, at_most=64)
    synthesize = params.synthesize.model_copy(update={"sampled_frames": rate})
    usage = usage_of(params.model_copy(update={"synthesize": synthesize}), "base")
    assert parse_usage(usage.model_dump_json(), "usage").sampled_frames == rate
    with pytest.raises(TrackingError, match="sampled_frames"):
        parse_usage(usage.model_dump_json().replace('"at_most":64', '"at_most":8192'), "usage")
