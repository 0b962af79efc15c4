"""Batched generation of replies to prompts about videos: greedy, or several samples per prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from transformers import LogitsProcessor, PreTrainedModel, ProcessorMixin

from stages.domain.core.frames import Frames
from stages.lib.models.processor import EncodedPrompt, encode_prompts, placeholder_ids, prompt_batch
from stages.lib.models.rendering import reply_opening
from stages.lib.models.settings import plain_settings

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
) -> list[str]:
    """Generate the greedy reply to each item, in order.

    Args:
        max_new_tokens: a reply is cut off after this many.
        max_time_s: the replies of a batch are cut off after this time; None: never.
        progress: called once per batch with the number of finished replies.

    Returns:
        The replies without control tokens; think and answer tags are kept, including those that the
            chat template puts in front.
    """
    replies: list[str] = []
    for prompts in _batches(processor, items, batch_size):
        replies += _decode(model, processor, prompts, max_new_tokens, [], max_time_s)
        if progress is not None:
            progress(len(prompts))
    return replies


def greedy_replies(
    model: PreTrainedModel, processor: ProcessorMixin, prompts: Sequence[EncodedPrompt], max_new_tokens: int
) -> list[str]:
    """Generate the greedy replies to these prompts as one batch; :func:`generate` does so with each
    of its batches."""
    return _decode(model, processor, prompts, max_new_tokens, [])


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
    return _decode(model, processor, prompts, max_new_tokens, [SeededDraws(seeds, temperature, model.device)])


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
) -> list[list[str]]:
    """Sample ``count`` replies to each item at ``temperature`` from the model's whole distribution.

    Each reply has its own random generator, seeded by its item's seed and its number, so the rest
    of the batch does not affect it. (Padding of a batch changes logits by rounding errors, which
    matters only if two tokens are that close.)

    Args:
        seeds: one per item.
        batch_size: prompts per batch; the model generates ``batch_size * count`` replies at a time.
        progress: called once per batch with the number of finished prompts.
    """
    replies: list[list[str]] = []
    for prompts in _batches(processor, items, batch_size):
        seeded = [f"{seed}/{n}" for seed in seeds[len(replies) : len(replies) + len(prompts)] for n in range(count)]
        repeated = [prompt for prompt in prompts for _ in range(count)]
        drawn = sampled_replies(model, processor, repeated, seeded, max_new_tokens, temperature)
        replies += [drawn[start : start + count] for start in range(0, len(drawn), count)]
        if progress is not None:
            progress(len(prompts))
    return replies


class SeededDraws(LogitsProcessor):
    """Turns greedy decoding into sampling, with one random generator per row [vocabulary].

    The arg max of logits / temperature + Gumbel noise is a draw from softmax(logits / temperature)
    (Gumbel, *Statistical Theory of Extreme Values*, 1954; Maddison, Tarlow and Minka, *A\\*
    Sampling*, 2014); -log of an exponential variate is Gumbel noise.
    """

    def __init__(self, seeds: Sequence[str], temperature: float, device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(_number(seed)) for seed in seeds]
        self._temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - the signature that transformers calls
        # In double precision, a variate of 0, whose logarithm is infinite, does not occur.
        noise = torch.empty_like(scores, dtype=torch.float64)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores / self._temperature - noise.log_()


def _number(seed: str) -> int:
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1


def _batches(processor: ProcessorMixin, items: Sequence[Item], batch_size: int) -> Iterator[list[EncodedPrompt]]:
    for start in range(0, len(items), batch_size):
        batch = [
            (prompt, (frames() if callable(frames) else frames,))
            for prompt, frames in items[start : start + batch_size]
        ]
        yield encode_prompts(processor, batch)


def _decode(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    prompts: Sequence[EncodedPrompt],
    max_new_tokens: int,
    processors: list[LogitsProcessor],
    max_time_s: float | None = None,
) -> list[str]:
    inputs, decode = prompt_batch(processor, prompts, model.device), cast(Any, model.generate)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), plain_settings(model, processor):
            ids = decode(
                **inputs,
                max_new_tokens=max_new_tokens,
                suppress_tokens=placeholder_ids(processor),
                max_time=max_time_s,
                logits_processor=processors,
            )
    finally:
        model.train(was_training)
    replies = processor.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    opening = reply_opening(processor)
    return [opening + reply for reply in cast("list[str]", replies)]
