"""Batched generation of replies to prompts about videos: greedy, or several samples per prompt."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import cast

from stages.domain.core.frames import Frames
from stages.lib.inference.policy import Draws, Policy, Query
from stages.lib.models.processor import encode_prompts
from stages.lib.models.rendering import reply_opening

#: A prompt and its frames, or a function that loads them, so that only one batch of frames is in
#: memory.
Item = tuple[str, Frames | Callable[[], Frames]]


def generate(
    policy: Policy,
    items: Sequence[Item],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
    videos: Sequence[Hashable] | None = None,
) -> list[str]:
    """Generate the greedy reply to each item, in order.

    Args:
        videos: a key of each item's video. Items with equal keys are put into one batch, where what
            stands before their questions passes through the model once.
        max_new_tokens: a reply is cut off after this many.
        progress: called once per batch with the number of finished replies.

    Returns:
        The replies without control tokens; think and answer tags are kept, including those that the
            chat template puts in front.
    """
    found: dict[int, str] = {}
    for places, queries in _batches(policy, items, batch_size, videos):
        found |= zip(places, replies(policy, queries, max_new_tokens), strict=True)
        if progress is not None:
            progress(len(queries))
    return [found[place] for place in range(len(items))]


def rollouts(
    policy: Policy,
    items: Sequence[Item],
    seeds: Sequence[str],
    *,
    count: int,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
    videos: Sequence[Hashable] | None = None,
) -> list[list[str]]:
    """Sample ``count`` replies to each item at ``temperature`` from the policy's whole
    distribution.

    Each reply has its own random generator, seeded by its item's seed and its number, so the rest
    of the batch does not affect it. (Padding of a batch changes logits by rounding errors, which
    matters only if two tokens are that close.)

    Args:
        seeds: one per item.
        batch_size: prompts per batch; the policy draws ``batch_size * count`` replies at a time.
        progress: called once per batch with the number of finished prompts.
        videos: see :func:`generate`.
    """
    found: dict[int, list[str]] = {}
    for places, queries in _batches(policy, items, batch_size, videos):
        seeded = [f"{seeds[place]}/{n}" for place in places for n in range(count)]
        repeated = [query for query in queries for _ in range(count)]
        drawn = replies(policy, repeated, max_new_tokens, Draws(seeded, temperature))
        found |= {place: drawn[row * count : (row + 1) * count] for row, place in enumerate(places)}
        if progress is not None:
            progress(len(queries))
    return [found[place] for place in range(len(items))]


def replies(policy: Policy, queries: Sequence[Query], max_new_tokens: int, draws: Draws | None = None) -> list[str]:
    """Generate a reply to each of these queries as one batch; :func:`generate` and :func:`rollouts`
    do so with each of theirs."""
    ids = policy.decode(queries, max_new_tokens, draws)
    texts = policy.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    opening = reply_opening(policy.processor)
    return [opening + text for text in cast("list[str]", texts)]


def _batches(
    policy: Policy, items: Sequence[Item], batch_size: int, videos: Sequence[Hashable] | None
) -> Iterator[tuple[list[int], list[Query]]]:
    """Batches of encoded items, each with the positions of its items."""
    order = list(range(len(items)))
    if videos is not None:
        first = {key: place for place, key in reversed([*enumerate(videos)])}
        order.sort(key=lambda place: first[videos[place]])
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        shown = [
            (prompt, frames() if callable(frames) else frames) for prompt, frames in map(items.__getitem__, places)
        ]
        encoded = encode_prompts(policy.processor, [(prompt, (frames,)) for prompt, frames in shown])
        yield places, [Query(*each, read) for each, read in zip(shown, encoded, strict=True)]
