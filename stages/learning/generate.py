"""Replies of a model to prompts about videos, in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedModel, ProcessorMixin

from stages.domain.frames import Frames
from stages.learning.processor import encode_prompts, placeholder_ids, prompt_batch


def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    items: Sequence[tuple[str, Frames | Callable[[], Frames]]],
    *,
    max_new_tokens: int,
    temperature: float | None,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """One reply for each (prompt, frames), in order.

    Frames may be given as a function that loads them: then only one batch of them is in memory.

    Args:
        max_new_tokens: a reply is cut off after so many.
        temperature: None decodes greedily; otherwise torch's global generator draws, so seed it first.
        progress: called with the number of replies that were finished, once a batch.

    Returns:
        The replies without control tokens; think and answer tags are kept.
    """
    where, decode = model.device, cast(Any, model.generate)
    settings = {
        "max_new_tokens": max_new_tokens,
        "suppress_tokens": placeholder_ids(processor),
        "pad_token_id": processor.tokenizer.pad_token_id,
        "eos_token_id": end_ids(model, processor),
        "do_sample": temperature is not None,
        # What a pretrained model's own generation settings would add is switched off: greedy is greedy.
        "temperature": temperature,
        "top_p": None,
        "top_k": None,
        "repetition_penalty": None,
    }
    replies: list[str] = []
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(items), batch_size):
            batch = [(prompt, (given() if callable(given) else given,)) for prompt, given in items[start : start + batch_size]]
            inputs = prompt_batch(processor, encode_prompts(processor, batch), where)
            with torch.no_grad():
                ids = decode(**inputs, **{k: v for k, v in settings.items() if v is not None})
            new = ids[:, inputs["input_ids"].shape[1] :]
            replies += processor.tokenizer.batch_decode(new, skip_special_tokens=True)
            if progress is not None:
                progress(len(batch))
    finally:
        model.train(was_training)
    return replies


def end_ids(model: PreTrainedModel, processor: ProcessorMixin) -> list[int]:
    """Tokens that end a reply: the tokenizer's own first, then what the model declares."""
    declared = model.generation_config.eos_token_id if model.generation_config is not None else None
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return list(dict.fromkeys([int(processor.tokenizer.eos_token_id), *declared]))
