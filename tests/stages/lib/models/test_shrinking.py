"""Frames resized one by one, while a video is read, equal those that the processor makes of all of
them together."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from stages.domain.core.frames import Frames
from stages.lib.models.load import save_model
from stages.lib.models.processor import encode_video
from stages.lib.models.resizing import fit_of, most_pixels, shrink_of
from stages.lib.video.errors import VideoError
from stages.lib.video.loader import load_video
from stages.tools.serving.decode import DecodeRequest, load_bounded
from tests.support.checkout import ROOT
from tests.support.training.tiny import tiny

CLIP = ROOT / "tests/data/clips/bigbuckbunny.mp4"


@pytest.mark.parametrize(
    ("height", "width", "count"),
    [(720, 1280, 8), (300, 500, 3), (64, 64, 8), (2000, 40, 4), (448, 449, 8), (1333, 777, 7)],
)
def test_they_are_the_same_bytes(height: int, width: int, count: int, family: str, tmp_path: Path) -> None:
    model, processor = tiny(family)
    # A cap on all frames together is meant for long videos; here it must take effect.
    processor.video_processor.size = {
        "shortest_edge": 1024,
        "longest_edge": 60_000 * (count if family == "qwen3_vl" else 1),
    }
    save_model(model, processor, tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    shrink = shrink_of(tmp_path / "model")
    size = shrink.size(count, height, width)
    shrunk = np.stack([shrink.apply(frame, size) for frame in pixels])
    assert np.array_equal(shrunk, fit_of(tmp_path / "model").apply(pixels))
    # Frames left unchanged are resized by the processor alone: resizing twice would give another
    # result.
    assert size == (height, width) or size[0] * size[1] <= most_pixels(processor, count)

    def seen(frames: np.ndarray) -> np.ndarray:
        shown = Frames(frames, tuple(range(count)), count, Fraction(8))
        return encode_video(processor, shown).fields.pixels.numpy()

    assert np.array_equal(seen(shrunk), seen(pixels))


def test_a_video_is_read_as_small_as_it_is_shown(tmp_path: Path) -> None:
    model, processor = tiny("qwen2_5_vl")
    processor.video_processor.size = {"shortest_edge": 1024, "longest_edge": 20_000}
    save_model(model, processor, tmp_path / "model")
    whole = load_video(CLIP, 8)
    read = load_bounded(DecodeRequest(CLIP, 8, 1 << 30), shrink_of(tmp_path / "model"))
    assert (read.indices, read.total, read.rate) == (whole.indices, whole.total, whole.rate)
    assert np.array_equal(read.pixels, fit_of(tmp_path / "model").apply(whole.pixels))
    # One frame in its own size, and all in the small one.
    needed = whole.pixels[0].nbytes + read.pixels.nbytes
    assert needed < whole.pixels.nbytes
    load_bounded(DecodeRequest(CLIP, 8, needed), shrink_of(tmp_path / "model"))
    with pytest.raises(VideoError, match="too-large"):
        load_bounded(DecodeRequest(CLIP, 8, needed - 1), shrink_of(tmp_path / "model"))
