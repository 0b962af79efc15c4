"""Questions for a rollout engine, from prompts and frames."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from transformers import ProcessorMixin

from stages.domain.core.frames import Frames
from stages.lib.engine.client import Asked
from stages.lib.engine.wire import Video
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


def video_of(frames: Frames) -> Video:
    """The video that the engine is shown: pixels before the processor, and their clock."""
    return Video(frames.pixels, video_metadata(frames))


@lru_cache(maxsize=8192)
def _unexpanded(processor: ProcessorMixin, prompt: str, videos: int) -> tuple[int, ...]:
    return tuple(processor.tokenizer(render(processor, prompt, videos), add_special_tokens=False)["input_ids"])
