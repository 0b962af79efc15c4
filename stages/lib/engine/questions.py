"""Questions for a rollout engine, from prompts and frames."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache

from transformers import ProcessorMixin

from stages.domain.core.frames import Frames
from stages.lib.engine.client import Asked
from stages.lib.engine.wire import Draw, Video
from stages.lib.models.processor import video_metadata
from stages.lib.models.rendering import render


def asked(
    processor: ProcessorMixin, prompt: str, videos: Sequence[Frames], expanded_ids: Sequence[int] | None = None
) -> Asked:
    """Build the question of a prompt about these videos.

    Args:
        expanded_ids: the ids of the same prompt as it is trained on
            (:class:`~stages.lib.models.processor.EncodedPrompt`), which the engine must read, too.
    """
    return Asked(_unexpanded(processor, prompt, len(videos)), [video_of(frames) for frames in videos], expanded_ids)


def asked_once(
    keys: Sequence[Hashable], seeds: Sequence[str | None], ask: Callable[[int], Asked]
) -> tuple[list[Asked], list[Draw]]:
    """Questions, one a key, and a draw of a reply for each row.

    Args:
        keys: of the rows; rows with equal ones are replies to one question.
        seeds: of the rows; None: greedy.
        ask: builds the question of a row.
    """
    number: dict[Hashable, int] = {}
    questions: list[Asked] = []
    for row, key in enumerate(keys):
        if key not in number:
            number[key] = len(questions)
            questions.append(ask(row))
    return questions, [Draw(number[key], seed) for key, seed in zip(keys, seeds, strict=True)]


def video_of(frames: Frames) -> Video:
    """The video that the engine is shown: pixels before the processor, and their clock."""
    return Video(frames.pixels, video_metadata(frames))


@lru_cache(maxsize=8192)
def _unexpanded(processor: ProcessorMixin, prompt: str, videos: int) -> tuple[int, ...]:
    return tuple(processor.tokenizer(render(processor, prompt, videos), add_special_tokens=False)["input_ids"])
