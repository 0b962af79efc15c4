"""Beginnings that prompts share: equal prompts, and questions about one video.

A rendered question is the system's text, the video and the question, so all questions about a video
begin alike, up to a thousand tokens and more. Each such beginning, a stem, passes through the model
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stages.lib.inference.vision_cache import first_equals
from stages.lib.models.processor import EncodedPrompt, VideoFields

#: Padding of a batch may be this fraction of its tokens, or so many: a pass of its own costs more.
_MOST_PADDING, _FEW_TOKENS = 1 / 8, 512


@dataclass(frozen=True)
class Stem:
    """A beginning of prompts.

    Attributes:
        prompt: its token ids, and all videos of the prompts.
        places: positions of the prompts in the list that they are from.
        rests: the other token ids of each of these prompts; all empty if they are equal to the
            stem, and none of them empty otherwise.
    """

    prompt: EncodedPrompt
    places: tuple[int, ...]
    rests: tuple[tuple[int, ...], ...]


def equal_prompts(prompts: Sequence[EncodedPrompt]) -> list[list[int]]:
    """Positions of each distinct prompt, in the order of their first ones. Equal prompts are equal
    in their tokens and in every bit of their videos."""
    positions: dict[int, list[int]] = {}
    for position, first in enumerate(_firsts(prompts, [prompt.ids for prompt in prompts])):
        positions.setdefault(first, []).append(position)
    return list(positions.values())


def stems_of(processor: Any, prompts: Sequence[EncodedPrompt], *, shared: bool = True) -> list[Stem]:
    """Find the stems of distinct prompts, in the order of their first prompts.

    If no two prompts have the same videos behind the same text, each prompt is a stem.

    Args:
        shared: False: each prompt is a stem in any case.
    """
    ends = [_behind_videos(prompt, int(processor.video_token_id)) for prompt in prompts]
    firsts = _firsts(prompts, [prompt.ids[:end] for prompt, end in zip(prompts, ends, strict=True)])
    if not shared or len(set(firsts)) == len(prompts):
        return [Stem(prompt, (place,), ((),)) for place, prompt in enumerate(prompts)]
    stems: list[Stem] = []
    for first in dict.fromkeys(firsts):
        places = tuple(place for place, other in enumerate(firsts) if other == first)
        ids = [prompts[place].ids for place in places]
        # A rest is never empty: its last token gives the logits of the first new one.
        length = min(_alike(ids), min(map(len, ids)) - 1)
        prompt = EncodedPrompt(ids[0][:length], prompts[first].videos)
        stems.append(Stem(prompt, places, tuple(each[length:] for each in ids)))
    return stems


def by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Divide sequences of these lengths into batches, the longest first, whose padding stays small;
    each batch is a list of positions."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        together = [lengths[other] for other in batches[-1]] + [lengths[place]] if batches else []
        area = max(together, default=0) * len(together)
        if not batches or area - sum(together) > max(_MOST_PADDING * area, _FEW_TOKENS):
            batches.append([])
        batches[-1].append(place)
    return batches


def _alike(ids: Sequence[tuple[int, ...]]) -> int:
    """Number of tokens with which all of them begin."""
    length = 0
    for tokens in zip(*ids, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length


def _behind_videos(prompt: EncodedPrompt, video_token: int) -> int:
    """Number of tokens up to the last one of a video; a prompt without any shares nothing but its
    equals."""
    if video_token not in prompt.ids:
        return len(prompt.ids) - 1
    return len(prompt.ids) - prompt.ids[::-1].index(video_token)


def _firsts(prompts: Sequence[EncodedPrompt], ids: Sequence[tuple[int, ...]]) -> list[int]:
    """For each prompt, the position of the first one with equal ids and videos."""
    return first_equals(ids, lambda one, other: _equal(prompts[one].videos, prompts[other].videos))


def _equal(one: VideoFields, other: VideoFields) -> bool:
    return one is other or (
        one.seconds == other.seconds
        and torch.equal(one.grids, other.grids)
        and (one.pixels is other.pixels or torch.equal(one.pixels, other.pixels))
    )
