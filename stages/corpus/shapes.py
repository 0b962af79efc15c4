"""Clips of the generated corpus: one coloured shape, two successive events, and their ground truth.

A scene is drawn from a seed of its own, rendered to frames, and annotated. The three steps are
separate, so that the ground truth of a clip never depends on its rendering. With 16 frames, event 1
spans [1-2, 5-6) and event 2 [10-11, 14): the start, the middle and the end stay visible whichever
of the two is blacked out. Other lengths and sizes scale in proportion.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import permutations, product
from random import Random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.domain.core.records import Question, Span, Split, Subject
from stages.domain.tasks.lexicon import SHAPES, VERBS
from stages.lib.annotations.annotation import Annotation, TimedEvent
from stages.params import CorpusParams, ParamsError

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (24, 150, 60),
    "blue": (40, 70, 220),
    "yellow": (240, 190, 0),
}
#: Movement of the shape by verb, in steps of MOVE_PX right and down.
MOVES = {"retreats": (-1, 0), "advances": (1, 0), "rises": (0, -1), "falls": (0, 1)}
#: Final radius of the shape by verb.
RADII_PX = {"grows": 15, "shrinks": 6}

#: Picture size and clip length that the numbers above and below refer to.
BASE_SIZE_PX, BASE_FRAMES = 64, 16
MOVE_PX, START_RADIUS_PX, START_SPREAD_PX = 14, 10, 4
#: Half the thickness of bar and pillar as a fraction of their radius.
THICKNESS = 0.42
BACKGROUND = (224, 224, 224)
LICENCE = "generated"


class Combination(NamedTuple):
    """Content of a clip without positions and times."""

    colour: str
    shape: str
    first: str
    last: str


class PlannedClip(NamedTuple):
    clip_id: str
    split: Split
    combination: Combination


@dataclass(frozen=True)
class Scene:
    """One clip before it is rendered. ``start_px`` is the shape's centre (x, y) in the first
    frame."""

    combination: Combination
    spans: tuple[Span, Span]
    start_px: tuple[float, float]
    size_px: int
    frames: int


def combinations() -> tuple[Combination, ...]:
    """All 4 colours x 3 shapes x 30 ordered pairs of different verbs, in a fixed order."""
    return tuple(
        Combination(colour, shape, *verbs) for colour, shape, verbs in product(COLOURS, SHAPES, permutations(VERBS, 2))
    )


def held_out(params: CorpusParams, seed: int) -> frozenset[Combination]:
    """Draw the combinations that occur in no training and no validation clip.

    Raises:
        ParamsError: none would be left for training.
    """
    everything = combinations()
    if params.held_out_combinations >= len(everything):
        raise ParamsError(
            "corpus.held_out_combinations",
            f"{params.held_out_combinations} of {len(everything)} combinations leave none for training",
            f"set at most {len(everything) - 1}",
        )
    return frozenset(Random(f"{seed}/corpus/held-out").sample(everything, params.held_out_combinations))


def plan(params: CorpusParams, seed: int) -> tuple[PlannedClip, ...]:
    """Plan the clips of the corpus. Every clip has its own seed, so that adding clips changes no
    other.

    Clips ``unseen-*`` are the half of the test split that is drawn from the held-out combinations.

    Raises:
        ParamsError: see :func:`held_out`.
    """
    held_out_set = held_out(params, seed)
    trained = tuple(c for c in combinations() if c not in held_out_set)
    unseen = tuple(c for c in combinations() if c in held_out_set)
    unseen_clips = params.test_clips // 2 if unseen else 0
    groups: tuple[tuple[str, Split, int, tuple[Combination, ...]], ...] = (
        ("train", "train", params.train_clips, trained),
        ("validation", "validation", params.validation_clips, trained),
        ("test", "test", params.test_clips - unseen_clips, trained),
        ("unseen", "test", unseen_clips, unseen),
    )
    clips = []
    for name, split, count, drawn_from in groups:
        for number in range(count):
            clip_id = f"{name}-{number:05d}"
            clips.append(PlannedClip(clip_id, split, Random(f"{seed}/corpus/{clip_id}/combination").choice(drawn_from)))
    return tuple(clips)


def draw_scene(clip: PlannedClip, params: CorpusParams, seed: int) -> Scene:
    """Draw the times of the two events and the start position of the shape, so that it never leaves
    the picture."""
    rng = Random(f"{seed}/corpus/{clip.clip_id}")

    def at(frame: int) -> int:
        return frame * params.frames // BASE_FRAMES

    spans = (
        Span(start=at(rng.randint(1, 2)), stop=at(rng.randint(5, 6))),
        Span(start=at(rng.randint(10, 11)), stop=at(14)),
    )
    verbs = (clip.combination.first, clip.combination.last)
    room = max(START_RADIUS_PX, *(RADII_PX.get(verb, 0) for verb in verbs)) + 1
    start = []
    for axis in (0, 1):
        path = np.cumsum([0, *(MOVE_PX * MOVES.get(verb, (0, 0))[axis] for verb in verbs)])
        lowest, highest = room - path.min(), BASE_SIZE_PX - room - path.max()
        middle = min(max(BASE_SIZE_PX / 2, lowest), highest)
        spread = rng.uniform(-START_SPREAD_PX, START_SPREAD_PX)
        start.append(float(min(max(middle + spread, lowest), highest)) * params.size_px / BASE_SIZE_PX)
    return Scene(clip.combination, spans, (start[0], start[1]), params.size_px, params.frames)


def render(scene: Scene) -> npt.NDArray[np.uint8]:
    """Render the frames of a scene, uint8 RGB [T, size, size, 3], with edges smoothed over one
    pixel."""
    scale = scene.size_px / BASE_SIZE_PX
    # Pixel centres.
    y, x = np.mgrid[0 : scene.size_px, 0 : scene.size_px] + 0.5
    background, colour = np.array(BACKGROUND, float), np.array(COLOURS[scene.combination.colour], float)
    frames = np.empty((scene.frames, scene.size_px, scene.size_px, 3), np.uint8)
    for number in range(scene.frames):
        centre_x, centre_y, radius = _state(scene, number, scale)
        outside_px = _distance(scene.combination.shape, x - centre_x, y - centre_y, radius)
        cover = np.clip(0.5 - outside_px, 0, 1)[..., None]
        frames[number] = np.rint(background + cover * (colour - background))
    return frames


def annotate(clip: PlannedClip, scene: Scene, rate: Fraction, seed: int) -> Annotation:
    """Write the ground truth of a clip in the annotation format that ingest reads."""
    colour, shape, first, last = scene.combination
    subject = f"the {colour} {shape}"
    return Annotation(
        video=f"videos/{clip.clip_id}.mp4",
        id=clip.clip_id,
        source=clip.clip_id,
        split=clip.split,
        label=f"{colour} {shape}",
        licence=LICENCE,
        caption=f"{subject} {first} then {last}",
        events=tuple(
            TimedEvent(start=span.start / rate, end=span.stop / rate, caption=f"{subject} {verb}")
            for span, verb in zip(scene.spans, (first, last), strict=True)
        ),
        qa=_questions(subject, first, last, Random(f"{seed}/corpus/{clip.clip_id}/questions")),
        subjects=(Subject(name=shape, attributes=(colour,), actions=(first, last)),),
    )


def _questions(subject: str, first: str, last: str, rng: Random) -> tuple[Question, ...]:
    """Ask for the first and for the last event, each with two draws of options.

    The clip's other verb is always among the wrong options, so that the order must be seen. There
    are two draws so that the letter of a clip cannot be memorised.
    """
    questions = []
    for when, right in (("first", first), ("last", last)) * 2:
        options = [first, last, *rng.sample([verb for verb in VERBS if verb not in (first, last)], 2)]
        rng.shuffle(options)
        letter = {verb: "ABCD"[position] for position, verb in enumerate(options)}
        named = {verb: f"{verb} {letter[verb]}" for verb in (first, last)}
        # The requested event comes last in the thinking, where the answer takes its letter from:
        # with events in order, a small model took either.
        story = f"{named[first]} then {named[last]}" if when == "last" else f"{named[last]} after {named[first]}"
        questions.append(
            Question(
                question=f"what does {subject} do {when} ?",
                options=tuple(options),
                answer=letter[right],
                # Thinking that names the letters links each letter to its verb; without it no
                # letter is learned.
                rationale=f"{subject} {story}",
            )
        )
    return tuple(questions)


def _state(scene: Scene, frame: int, scale: float) -> tuple[float, float, float]:
    """Centre and radius in pixels at a frame."""
    (x, y), radius = scene.start_px, START_RADIUS_PX * scale
    for span, verb in zip(scene.spans, (scene.combination.first, scene.combination.last), strict=True):
        # Every frame of the span differs from both ends, and the first frame after it shows the
        # end.
        done = min(max((frame - span.start + 1) / (span.frames + 1), 0.0), 1.0)
        step_x, step_y = MOVES.get(verb, (0, 0))
        x, y = x + step_x * MOVE_PX * scale * done, y + step_y * MOVE_PX * scale * done
        radius += (RADII_PX[verb] * scale - radius) * done if verb in RADII_PX else 0.0
    return x, y, radius


def _distance(
    shape: str, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], radius: float
) -> npt.NDArray[np.float64]:
    """Signed distance in pixels from the shape's edge, negative inside."""
    if shape == "circle":
        return np.asarray(np.hypot(x, y) - radius)
    half_width, half_height = (radius, radius * THICKNESS) if shape == "bar" else (radius * THICKNESS, radius)
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)
