"""Batched generation of replies to prompts about videos: greedy, or several samples per prompt."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import cast

from transformers import PreTrainedModel, ProcessorMixin

from stages.domain.core.frames import Frames
from stages.lib.inference.decode import Draw, Limits, SeededDraws, decode, greedy
from stages.lib.models.processor import EncodedPrompt, encode_prompts, placeholder_ids
from stages.lib.models.rendering import reply_opening
from stages.lib.models.settings import end_ids, plain_model

#: A prompt and its frames, or a function that loads them, so that only one batch of frames is in
#: memory.
Item = tuple[str, Frames | Callable[[], Frames]]


def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    items: Sequence[Item],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
    max_time_s: float | None = None,
    videos: Sequence[Hashable] | None = None,
) -> list[str]:
    """Generate the greedy reply to each item, in order.

    Args:
        videos: a key of each item's video. Items with equal keys are put into one batch, where what
            stands before their questions passes through the model once.
        max_new_tokens: a reply is cut off after this many.
        max_time_s: the replies of a batch are cut off after this time; None: never.
        progress: called once per batch with the number of finished replies.

    Returns:
        The replies without control tokens; think and answer tags are kept, including those that the
            chat template puts in front.
    """
    replies: dict[int, str] = {}
    for places, prompts in _batches(processor, items, batch_size, videos):
        replies |= zip(places, _decoded(model, processor, prompts, greedy, max_new_tokens, max_time_s), strict=True)
        if progress is not None:
            progress(len(prompts))
    return [replies[place] for place in range(len(items))]


def greedy_replies(
    model: PreTrainedModel, processor: ProcessorMixin, prompts: Sequence[EncodedPrompt], max_new_tokens: int
) -> list[str]:
    """Generate the greedy replies to these prompts as one batch; :func:`generate` does so with each
    of its batches."""
    return _decoded(model, processor, prompts, greedy, max_new_tokens)


def sampled_replies(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    prompts: Sequence[EncodedPrompt],
    seeds: Sequence[str],
    max_new_tokens: int,
    temperature: float,
) -> list[str]:
    """Sample a reply to each of these prompts as one batch, with a seed for each;
    :func:`rollouts` does so with several replies to each of many."""
    draw = SeededDraws(seeds, temperature, model.device)
    return _decoded(model, processor, prompts, draw, max_new_tokens)


def rollouts(
    model: PreTrainedModel,
    processor: ProcessorMixin,
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
    """Sample ``count`` replies to each item at ``temperature`` from the model's whole distribution.

    Each reply has its own random generator, seeded by its item's seed and its number, so the rest
    of the batch does not affect it. (Padding of a batch changes logits by rounding errors, which
    matters only if two tokens are that close.)

    Args:
        seeds: one per item.
        batch_size: prompts per batch; the model generates ``batch_size * count`` replies at a time.
        progress: called once per batch with the number of finished prompts.
        videos: see :func:`generate`.
    """
    replies: dict[int, list[str]] = {}
    for places, prompts in _batches(processor, items, batch_size, videos):
        seeded = [f"{seeds[place]}/{n}" for place in places for n in range(count)]
        repeated = [prompt for prompt in prompts for _ in range(count)]
        drawn = sampled_replies(model, processor, repeated, seeded, max_new_tokens, temperature)
        replies |= {place: drawn[row * count : (row + 1) * count] for row, place in enumerate(places)}
        if progress is not None:
            progress(len(prompts))
    return [replies[place] for place in range(len(items))]


def _batches(
    processor: ProcessorMixin, items: Sequence[Item], batch_size: int, videos: Sequence[Hashable] | None
) -> Iterator[tuple[list[int], list[EncodedPrompt]]]:
    """Batches of encoded items, each with the positions of its items."""
    order = list(range(len(items)))
    if videos is not None:
        first = {key: place for place, key in reversed([*enumerate(videos)])}
        order.sort(key=lambda place: first[videos[place]])
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = [
            (prompt, (frames() if callable(frames) else frames,)) for prompt, frames in map(items.__getitem__, places)
        ]
        yield places, encode_prompts(processor, batch)


def _decoded(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    prompts: Sequence[EncodedPrompt],
    draw: Draw,
    max_new_tokens: int,
    max_time_s: float | None = None,
) -> list[str]:
    limits = Limits(
        max_new_tokens,
        tuple(end_ids(plain_model(model), processor)),
        tuple(placeholder_ids(processor)),
        max_time_s=max_time_s,
    )
    replies = decode(model, processor, prompts, draw, limits)
    texts = processor.tokenizer.batch_decode([reply.ids for reply in replies], skip_special_tokens=True)
    opening = reply_opening(processor)
    return [opening + text for text in cast("list[str]", texts)]
