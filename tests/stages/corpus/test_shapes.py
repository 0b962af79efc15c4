"""The generated corpus matches its annotations, and its held-out half stays held out."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.corpus.shapes import (
    BACKGROUND,
    COLOURS,
    MOVES,
    RADII_PX,
    SHAPES,
    VERBS,
    PlannedClip,
    annotate,
    combinations,
    draw_scene,
    held_out,
    plan,
    render,
)
from stages.domain.core.timeline import sample_indices
from stages.domain.tasks import lexicon
from stages.lib.annotations.annotation import Annotation
from stages.lib.annotations.jsonl import read_annotations
from stages.lib.annotations.writing import write_annotations
from stages.params import CorpusParams, ParamsError


def params(**changes: object) -> CorpusParams:
    values = {
        "train_clips": 400,
        "validation_clips": 60,
        "test_clips": 90,
        "size_px": 64,
        "frames": 16,
        "rate": "8",
        "held_out_combinations": 36,
        "crf": 18,
    }
    return CorpusParams.model_validate(values | changes)


def test_there_are_360_combinations() -> None:
    assert len(set(combinations())) == 360
    assert all(c.first != c.last for c in combinations())


def test_the_judge_knows_every_word() -> None:
    assert tuple(COLOURS) == lexicon.COLOURS
    assert set(lexicon.VERBS) == {*MOVES, *RADII_PX}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 359))
def test_held_out_combinations_never_occur_in_training(seed: int, count: int) -> None:
    world = params(held_out_combinations=count, train_clips=150, validation_clips=30, test_clips=31)
    kept_back, clips = held_out(world, seed), plan(world, seed)
    assert len(kept_back) == count
    for clip in clips:
        assert (clip.combination in kept_back) == clip.clip_id.startswith("unseen-")
    splits = [clip.split for clip in clips]
    assert [splits.count(split) for split in ("train", "validation", "test")] == [150, 30, 31]
    assert sum(clip.clip_id.startswith("unseen-") for clip in clips) == 15
    assert len({clip.clip_id for clip in clips}) == len(clips)


def test_more_clips_change_no_other() -> None:
    few, many = plan(params(), seed=7), plan(params(train_clips=500, test_clips=200), seed=7)
    assert set(few) <= set(many)
    assert draw_scene(few[3], params(), 7) == draw_scene(few[3], params(train_clips=500), 7)
    assert plan(params(), seed=8) != few


def test_nothing_held_out_and_everything_held_out() -> None:
    assert not any(clip.clip_id.startswith("unseen") for clip in plan(params(held_out_combinations=0), 7))
    with pytest.raises(
        ParamsError, match=r"corpus\.held_out_combinations: 360 of 360 combinations leave none for training"
    ):
        plan(params(held_out_combinations=360), 7)


def _measure(frame: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], colour: str) -> tuple[float, float, float]:
    """Centre (x, y) and radius in pixels of what is not background, from its cover."""
    background, full = np.array(BACKGROUND, float), np.array(COLOURS[colour], float)
    cover = ((frame - background) @ (full - background)) / ((full - background) @ (full - background))
    y, x = np.mgrid[0 : len(frame), 0 : len(frame)] + 0.5
    rows, columns = cover.max(axis=1).sum(), cover.max(axis=0).sum()
    return float((cover * x).sum() / cover.sum()), float((cover * y).sum() / cover.sum()), float(max(rows, columns) / 2)


@pytest.mark.parametrize(("size_px", "frames"), [(64, 16), (128, 48)])
def test_what_is_said_is_what_is_seen(size_px: int, frames: int) -> None:
    world, scale = params(size_px=size_px, frames=frames), size_px / 64
    for number, combination in enumerate(combinations()[::7]):
        scene = draw_scene(PlannedClip(f"clip-{number}", "train", combination), world, seed=7)
        pixels = render(scene)
        assert pixels.shape == (frames, size_px, size_px, 3)
        # Never cut off by the border.
        for edge in (pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]):
            assert (edge == BACKGROUND).all()
        for span, verb in zip(scene.spans, (combination.first, combination.last), strict=True):
            before, after = (_measure(pixels[frame], combination.colour) for frame in (span.start - 1, span.stop))
            dx, dy, dr = ((b - a) / scale for a, b in zip(before, after, strict=True))
            move = {"retreats": (-14, 0), "advances": (14, 0), "rises": (0, -14), "falls": (0, 14)}.get(verb, (0, 0))
            assert (dx, dy) == pytest.approx(move, abs=0.2), verb
            assert after[2] / scale == pytest.approx({"grows": 15, "shrinks": 6}.get(verb, before[2] / scale), abs=0.8)
            assert (abs(dr) > 2) == (verb in ("grows", "shrinks"))
        # Outside the spans nothing moves.
        still = [f for f in range(1, frames) if not any(span.start <= f <= span.stop for span in scene.spans)]
        assert all((pixels[f] == pixels[f - 1]).all() for f in still)


def test_start_middle_and_end_are_always_sampled() -> None:
    world = params()
    shown = sample_indices(world.frames, 8)
    for clip in plan(world, 7):
        first, last = draw_scene(clip, world, 7).spans
        assert sum(f in first for f in shown) == sum(f in last for f in shown) == 2
        assert shown[0] < first.start
        assert any(first.stop <= f < last.start for f in shown)
        assert shown[-1] >= last.stop


def test_the_annotation_tells_everything() -> None:
    clip = plan(params(), 7)[0]
    scene = draw_scene(clip, params(), 7)
    row = annotate(clip, scene, Fraction(8), 7)
    colour, shape, first, last = clip.combination
    assert row.caption == f"the {colour} {shape} {first} then {last}"
    assert row.label == f"{colour} {shape}"
    assert [event.caption for event in row.events] == [f"the {colour} {shape} {verb}" for verb in (first, last)]
    assert [event.start for event in row.events] == [Fraction(span.start, 8) for span in scene.spans]
    assert row.subjects[0].model_dump() == {"name": shape, "attributes": (colour,), "actions": (first, last)}


def test_questions_have_one_right_option_and_the_other_verb_among_the_wrong_ones() -> None:
    letters = []
    for clip in plan(params(), 7)[:200]:
        row = annotate(clip, draw_scene(clip, params(), 7), Fraction(8), 7)
        for question, right, when in zip(row.qa, clip.combination[2:] * 2, ("first", "last") * 2, strict=True):
            assert question.question == f"what does the {row.label} do {when} ?"
            assert len(set(question.options)) == 4
            assert set(clip.combination[2:]) <= set(question.options) <= set(VERBS)
            assert question.options["ABCD".index(question.answer)] == right
            first, last = (f"{verb} {'ABCD'[question.options.index(verb)]}" for verb in clip.combination[2:])
            told = f"{first} then {last}" if when == "last" else f"{last} after {first}"
            assert question.rationale == f"the {row.label} {told}"
            letters.append(question.answer)
    assert min(letters.count(letter) for letter in "ABCD") > 120


def test_what_the_corpus_writes_the_adapter_reads(tmp_path: Path) -> None:
    rate = Fraction(30000, 1001)
    rows = [annotate(clip, draw_scene(clip, params(), 7), rate, 7) for clip in plan(params(), 7)[:5]]
    (tmp_path / "videos").mkdir()
    for row in rows:
        (tmp_path / row.video).touch()
    write_annotations(rows, tmp_path / "annotations.jsonl")
    read, rejects, *_ = read_annotations(tmp_path)
    assert rejects == []
    assert [row.where for row in read] == [f"annotations.jsonl:{number}" for number in range(1, 6)]
    assert [row.model_copy(update={"where": ""}) for row in read] == rows
    assert isinstance(read[0], Annotation)
    assert {row.label.split()[1] for row in rows if row.label} <= set(SHAPES)
