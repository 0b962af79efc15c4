"""What is asked of a model, and what comes back: questions about videos, and about the same videos black and out of order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from stages.domain.core.digest import digest
from stages.domain.core.frames import Frames, blank, shuffled
from stages.errors import VidbridgeError

#: How a video is shown: as it is, all black, or with its frames in another order.
View = Literal["video", "blank", "shuffled"]
CONTROLS: tuple[View, ...] = ("blank", "shuffled")


class Question(NamedTuple):
    """``sight``: names what it is about; the frames of equal sights are loaded once."""

    item_id: str
    view: View
    sight: str
    prompt: str


class Answer(NamedTuple):
    """``reply`` is None where there is none, and ``reason`` then says why; ``frames``: how many the model was shown."""

    question: Question
    reply: str | None
    frames: int
    reason: str


#: Loads what a sight shows. Raises VideoError.
Load = Callable[[str], Frames]
#: Is told of answers as they come.
Tell = Callable[[Sequence[Answer]], None]


class EngineError(VidbridgeError, RuntimeError):
    """A model cannot be asked, or answers on disk cannot be gone on with; the message says what to do."""


def seen(frames: Frames, view: View, seed: str) -> Frames:
    """The frames under a view. ``seed`` decides the other order, and nothing else does."""
    if view == "blank":
        return blank(frames)
    return shuffled(frames, seed) if view == "shuffled" else frames


def questions(items: Iterable[tuple[str, str, str]], controlled: set[str]) -> list[Question]:
    """The questions in the order in which they are asked: all about one sight together, view after view.

    Args:
        items: id, sight and prompt of each.
        controlled: ids that are asked with the changed videos too.
    """
    about: dict[str, list[tuple[str, str]]] = {}
    for item_id, sight, prompt in items:
        about.setdefault(sight, []).append((item_id, prompt))
    return [
        Question(item_id, view, sight, prompt)
        for sight, asked in about.items()
        for view in ("video", *CONTROLS)
        for item_id, prompt in asked
        if view == "video" or item_id in controlled
    ]


def drawn(ids: Sequence[str], count: int | None, seed: int) -> set[str]:
    """``count`` of the ids (None: all), drawn by their own digests: another id in the list moves few of them out."""
    return set(sorted(ids, key=lambda item_id: digest({"seed": seed, "control": item_id}))[:count])
