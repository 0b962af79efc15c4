"""Shaping rewards go to right replies only, and a missing verdict never counts as a wrong reply."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.domain.core.frames import Frames, blank, shuffled
from stages.domain.core.records import Score
from stages.domain.core.replies import render_reply
from stages.domain.rl.shaping import LengthReward, TemporalContrast, contrast_paid, length_paid

LENGTH = LengthReward(weight=0.2, min_words=3, max_words=5, min_share=0.5)
CONTRAST = TemporalContrast(weight=0.3, ratio=1.0, rollouts=2, min_share=0.5)
SHARE = st.one_of(st.none(), st.floats(0, 1))


def score(words: int, value: float | None, format_ok: bool = True) -> Score:
    reply = render_reply("x", " ".join(["word"] * (words - 1))) if format_ok else "word " * words
    return Score(sample_id="s", task="caption", reply=reply, format_ok=format_ok, value=value)


@pytest.mark.parametrize(
    ("words", "value", "paid"),
    [(2, 1.0, 0.0), (3, 1.0, 1.0), (5, 0.5, 1.0), (6, 1.0, 0.0), (4, 0.49, 0.0), (4, None, None)],
)
def test_length_pays_right_replies_of_that_length(words: int, value: float | None, paid: float | None) -> None:
    assert length_paid(score(words, value), LENGTH) == paid


def test_length_pays_nothing_without_the_format() -> None:
    assert length_paid(score(4, 0.0, format_ok=False), LENGTH) == 0.0
    with pytest.raises(ValidationError, match="min_words 6 exceeds max_words 5"):
        LengthReward(weight=0.2, min_words=6, max_words=5, min_share=0.5)


def test_contrast_pays_right_replies_where_the_order_of_frames_is_needed() -> None:
    assert contrast_paid([1.0, 0.0, 1.0, None], [0.5, 0.0], CONTRAST) == [1.0, 0.0, 1.0, None]
    assert contrast_paid([1.0, 0.0], [0.5, 0.5], CONTRAST) == [0.0, 0.0], "no better than shuffled"
    assert contrast_paid([1.0, 0.0], [0.5, 0.5], CONTRAST.model_copy(update={"ratio": 0.8})) == [1.0, 0.0]
    assert contrast_paid([1.0, 1.0], [None, None], CONTRAST) == [None, None], "nothing is known of the shuffled video"
    assert contrast_paid([1.0, 1.0], [None, 0.0], CONTRAST) == [1.0, 1.0]


@given(st.lists(SHARE, min_size=1, max_size=8), st.lists(SHARE, min_size=1, max_size=8))
def test_contrast_stays_in_range_and_keeps_what_is_not_judged(
    ordered: list[float | None], other: list[float | None]
) -> None:
    paid = contrast_paid(ordered, other, CONTRAST)
    assert len(paid) == len(ordered)
    for share, value in zip(ordered, paid, strict=True):
        assert value is None or (value in (0.0, 1.0) and share is not None)


def test_other_videos() -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1).repeat(3, axis=3)
    frames = Frames(pixels, tuple(range(6)), 6, Fraction(8))
    assert not blank(frames).pixels.any()
    other = shuffled(frames, "seed")
    assert sorted(other.pixels[:, 0, 0, 0].tolist()) == list(range(6))
    assert not np.array_equal(other.pixels, pixels)
    assert np.array_equal(other.pixels, shuffled(frames, "seed").pixels), "the same for the same seed"
    assert (other.indices, other.total, other.rate) == (frames.indices, frames.total, frames.rate)
    for count in (1, 2):
        few = Frames(pixels[:count], tuple(range(count)), count, Fraction(8))
        for seed in range(8):
            assert np.array_equal(shuffled(few, str(seed)).pixels, pixels[:count][::-1]), (
                "two frames have one other order"
            )
