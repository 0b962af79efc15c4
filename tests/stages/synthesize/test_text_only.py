"""Guesses from text alone, by a guesser that knows everything except the dark event itself."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from stages.domain.core.records import Clip
from stages.domain.tasks.lexicon import COLOURS, SHAPES, VERBS
from stages.lib.rows.jsonl import write_rows
from stages.params import SynthesizeParams
from stages.synthesize import shards
from stages.synthesize.manifest import Manifest
from stages.synthesize.text_only import TextOnlyGuesser
from tests.support.builders import SETTINGS, clip


def _world(count: int, *, scripted: bool) -> list[Clip]:
    """Clips whose second event follows from the first, or has nothing to do with it."""
    rng, verbs = Random(5), list(VERBS)
    pairs = [
        (first, verbs[(verbs.index(first) + 1) % 6] if scripted else rng.choice(verbs))
        for first in rng.choices(verbs, k=count)
    ]
    return [clip(n, rng.choice(COLOURS), rng.choice(SHAPES), pair) for n, pair in enumerate(pairs)]


def _right(clips: list[Clip], guesser: TextOnlyGuesser) -> float:
    return sum(guesser.guess(c, c.events[1]) == c.events[1].caption for c in clips) / len(clips)


def test_a_script_is_learned_and_chance_is_not() -> None:
    scripted, free = _world(1200, scripted=True), _world(1200, scripted=False)
    assert _right(scripted[1000:], TextOnlyGuesser(scripted[:1000])) > 0.9
    # Six verbs: the subject is told by the other event, what it does is not.
    assert 0.08 < _right(free[1000:], TextOnlyGuesser(free[:1000])) < 0.3


def test_the_order_of_clips_does_not_matter() -> None:
    clips = _world(60, scripted=False)
    guesses = [TextOnlyGuesser(order).guess(clips[0], clips[0].events[1]) for order in (clips[1:], clips[:0:-1])]
    assert guesses[0] == guesses[1]


def test_nothing_to_learn_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="none has an event"):
        TextOnlyGuesser([clip(events=())]).guess(clip(), clip().events[0])


def test_the_manifest_that_is_guessed_from_is_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Manifest] = []

    class Kept(Manifest):
        def __init__(self, manifest: Path, index: Path) -> None:
            super().__init__(manifest, index)
            opened.append(self)

    monkeypatch.setattr(shards, "Manifest", Kept)
    manifest, index = tmp_path / "manifest.jsonl", tmp_path / shards.INDEX_FILE
    clips = [
        each.model_copy(update={"split": "test" if n % 3 else "train"})
        for n, each in enumerate(_world(90, scripted=False))
    ]
    write_rows(manifest, clips)
    shards.write_index(manifest, index)
    settings = SynthesizeParams.model_validate(
        {
            "sampled_frames": 8,
            "contact_sheet_samples": 1,
            "max_text_only": 1.0,
            "writer": None,
            "tasks": SETTINGS.model_dump(),
        }
    )
    guesses = shards.text_only(manifest, settings, 7, tmp_path)
    assert guesses is not None
    assert guesses.guessed.low < guesses.guessed.mean < guesses.guessed.high
    assert [each._file.closed for each in opened] == [True]
