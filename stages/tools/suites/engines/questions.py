"""Questions to a model and its answers: about videos, and about the same videos black or shuffled
as controls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from stages.domain.core.digest import digest
from stages.domain.core.frames import Frames, blank, shuffled
from stages.errors import EndpointError

#: View of a video: as it is, all black, or with its frames in another order.
View = Literal["video", "blank", "shuffled"]
#: Kind of a question: its view, or that its reply is sampled, with the video as it is.
Kind = Literal["video", "blank", "shuffled", "sampled"]
CONTROLS: tuple[View, ...] = ("blank", "shuffled")


class Question(NamedTuple):
    """``video_key`` identifies the video. Questions with equal ones share one decode. ``number``:
    of a sampled reply; None: the greedy one."""

    item_id: str
    view: View
    video_key: str
    prompt: str
    number: int | None = None

    @property
    def kind(self) -> Kind:
        """Its view, or that its reply is sampled."""
        return self.view if self.number is None else "sampled"


class Answer(NamedTuple):
    """``reply`` is None if there is none, and ``reason`` then says why; ``frames``: the number of
    frames in the request."""

    question: Question
    reply: str | None
    frames: int
    reason: str


#: Loads the frames of a video by its key. Raises VideoError.
Load = Callable[[str], Frames]
#: Called with answers as they arrive.
OnAnswers = Callable[[Sequence[Answer]], None]


class EngineError(EndpointError, RuntimeError):
    """A model cannot be queried, or answers on disk cannot be resumed; the message has the
    remedy."""


def apply_view(frames: Frames, view: View, seed: str) -> Frames:
    """Frames under a view. Only ``seed`` determines the order of shuffled frames."""
    if view == "blank":
        return blank(frames)
    return shuffled(frames, seed) if view == "shuffled" else frames


def questions(items: Iterable[tuple[str, str, str]], controlled: set[str], replies: int = 0) -> list[Question]:
    """Order the questions: all about one video together, view after view; then, in the same order,
    those whose replies are sampled, so that the batches of the others do not depend on them.

    Args:
        items: id, video key and prompt of each.
        controlled: ids that are also asked with the control videos.
        replies: number of sampled replies to each.
    """
    about: dict[str, list[tuple[str, str]]] = {}
    for item_id, video_key, prompt in items:
        about.setdefault(video_key, []).append((item_id, prompt))
    greedy = [
        Question(item_id, view, video_key, prompt)
        for video_key, prompts in about.items()
        for view in ("video", *CONTROLS)
        for item_id, prompt in prompts
        if view == "video" or item_id in controlled
    ]
    return greedy + [
        Question(item_id, "video", video_key, prompt, number)
        for video_key, prompts in about.items()
        for item_id, prompt in prompts
        for number in range(replies)
    ]


def seed_of(seed: int, question: Question) -> str:
    """Seed of a sampled reply: of no other question, and of no batch."""
    return f"{seed}/{question.item_id}/{question.number}"


def drawn(ids: Sequence[str], count: int | None, seed: int) -> set[str]:
    """Draw ``count`` of the ids (None: all) by their own digests: an additional id changes the draw
    little."""
    return set(sorted(ids, key=lambda item_id: digest({"seed": seed, "control": item_id}))[:count])
