"""Settings taken from a checkpoint: only the tokens that end a reply. ``params.yaml`` sets the
rest."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin


def plain_generation(model: PreTrainedModel, processor: ProcessorMixin) -> GenerationConfig:
    """Generation settings with the tokens that begin, end and pad a reply, and nothing else."""
    tokenizer = processor.tokenizer
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end_ids(model, processor),
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )


def plain_model(model: Any) -> Any:
    """Return the model inside its adapters, which has its settings and its parts."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def end_ids(model: PreTrainedModel, processor: ProcessorMixin) -> list[int]:
    """Ids of the tokens that end a reply: the tokenizer's own first, then those that the model
    declares."""
    declared = model.generation_config.eos_token_id if model.generation_config is not None else None
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return list(dict.fromkeys([int(processor.tokenizer.eos_token_id), *declared]))


def longest(model: Any) -> int:
    """Number of tokens that a model has positions for."""
    return int(model.config.get_text_config().max_position_embeddings)


def without_dropout(model: PreTrainedModel) -> None:
    """Switch off dropout set by a checkpoint's configuration, which would randomise
    log-probabilities and move ratios from 1."""
    configs = [model.config, *(getattr(model.config, name) for name in model.config.sub_configs)]
    for part in [*configs, *model.modules()]:
        if isinstance(getattr(part, "attention_dropout", None), float | int):
            part.attention_dropout = 0.0
