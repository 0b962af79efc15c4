from __future__ import annotations

from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.domain.core.records import Segment, Span
from stages.domain.core.timeline import (
    cut,
    interleave,
    mask,
    piece_lengths,
    plain,
    resolve,
    sample_indices,
    segment_counts,
)


def test_mask_darkens_exactly_the_span_and_keeps_the_timing() -> None:
    before = plain("a", 16, Fraction(8))
    after = mask(before, Span(start=3, stop=6))
    assert after.frames == before.frames
    assert before.dark == ()
    shown = resolve(after, range(16))
    assert [source.dark for source in shown] == [3 <= i < 6 for i in range(16)]
    assert [source.frame for source in shown] == list(range(16))


def test_a_mask_beyond_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[10, 17\) reaches beyond the timeline of 16"):
        mask(plain("a", 16, Fraction(8)), Span(start=10, stop=17))


def test_interleave_shows_every_frame_of_both_clips_once_and_in_order() -> None:
    a = [Segment(clip_id="a", span=span) for span in cut(10, [4, 6])]
    b = [Segment(clip_id="b", span=span) for span in cut(9, [3, 3, 3])]
    timeline = interleave(a, b, Fraction(8))
    shown = resolve(timeline, range(timeline.frames))
    assert [source.frame for source in shown if source.clip_id == "a"] == list(range(10))
    assert [source.frame for source in shown if source.clip_id == "b"] == list(range(9))
    assert [segment.clip_id for segment in timeline.segments] == ["a", "b", "a", "b", "b"]


@given(st.integers(1, 400), st.integers(2, 64))
def test_samples_are_even_ordered_and_inside(total: int, count: int) -> None:
    indices = sample_indices(total, count)
    assert len(indices) == count
    assert list(indices) == sorted(indices)
    assert indices[0] == 0
    assert indices[-1] == total - 1
    steps = {b - a for a, b in zip(indices, indices[1:], strict=False)}
    assert max(steps) - min(steps) <= 1


@given(st.integers(1, 300), st.integers(1, 20), st.integers(0, 20), st.integers(0, 5))
def test_piece_lengths_add_up_and_stay_in_range(frames: int, shortest: int, more: int, seed: int) -> None:
    lengths = piece_lengths(frames, shortest, shortest + more, Random(seed))
    possible = any(k * shortest <= frames <= k * (shortest + more) for k in range(1, frames + 1))
    assert (lengths is not None) == possible
    if lengths is not None:
        assert sum(lengths) == frames
        assert [length for length in lengths if not shortest <= length <= shortest + more] == []


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(2, 32))
def test_segment_counts_add_up(pieces: list[int], count: int) -> None:
    segments = [Segment(clip_id="a", span=span) for span in cut(sum(pieces), pieces)]
    timeline = interleave(segments, [], Fraction(8))
    indices = sample_indices(timeline.frames, count)
    assert sum(segment_counts(timeline, indices)) == count


def test_an_index_outside_is_refused() -> None:
    with pytest.raises(IndexError, match="frame 16 is outside"):
        resolve(plain("a", 16, Fraction(8)), [16])
