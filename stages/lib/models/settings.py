"""What of a checkpoint's settings is in force: which tokens end a reply. `params.yaml` says the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin


@contextmanager
def plain_settings(model: Any, processor: ProcessorMixin) -> Iterator[None]:
    """For as long as this holds, `generate` of this model takes nothing from the settings that came with it but what ends a reply.

    transformers fills every setting that a call leaves open from the model's own, so undoing them by name would never end.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT, which asks the model inside it
    own, inner.generation_config = inner.generation_config, plain_generation(inner, processor)
    try:
        yield
    finally:
        inner.generation_config = own


def plain_generation(model: PreTrainedModel, processor: ProcessorMixin) -> GenerationConfig:
    """Generation settings that say which tokens begin, end and fill a reply, and nothing else."""
    tokenizer = processor.tokenizer
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end_ids(model, processor),
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )


def end_ids(model: PreTrainedModel, processor: ProcessorMixin) -> list[int]:
    """Tokens that end a reply: the tokenizer's own first, then what the model declares."""
    declared = model.generation_config.eos_token_id if model.generation_config is not None else None
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return list(dict.fromkeys([int(processor.tokenizer.eos_token_id), *declared]))


def without_dropout(model: PreTrainedModel) -> None:
    """Switch off dropout that a checkpoint's configuration asks for: log-probabilities would be drawn, and ratios differ from 1."""
    configs = [model.config, *(getattr(model.config, name) for name in model.config.sub_configs)]
    for part in [*configs, *model.modules()]:
        if isinstance(getattr(part, "attention_dropout", None), float | int):
            part.attention_dropout = 0.0
