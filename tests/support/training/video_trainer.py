"""Steps of the video trainer, and the log-probabilities that each row has by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, ProcessorMixin
from trl import GRPOConfig, GRPOTrainer

from stages.domain.core.frames import Frames
from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.models.processor import (
    VideoFields,
    join_videos,
    modality_of,
)
from tests.support.training.tiny import frames

TEMPERATURE = 0.7
TOLERANCE = 1e-5

#: Different lengths and sizes, and one prompt about two videos: nothing lines up by accident.
VIDEOS: dict[str, tuple[Frames, ...]] = {
    "a": (frames(1),),
    "b": (frames(2, count=6),),
    "c": (frames(3, count=2, size=(48, 32)), frames(4, count=4)),
    "d": (frames(5, size=(32, 48)),),
}


def config(tmp_path: Path, **changes: Any) -> GRPOConfig:
    values: dict[str, Any] = {
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,  # 8 completions a generation, split in two
        "num_generations": 2,
        "max_completion_length": 6,
        "temperature": TEMPERATURE,
        "beta": 0.1,  # a reference model
        "num_iterations": 2,  # old log-probabilities
        "activation_checkpointing": False,
        "gradient_checkpointing": None,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 3,
    }
    return GRPOConfig(**{**values, **changes})


def plain_distributions(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    prompt: Sequence[int],
    completion: Sequence[int],
    videos: VideoFields,
) -> torch.Tensor:
    """Log-probabilities of all tokens at each place of a completion and behind it, [tokens + 1,
    vocabulary], computed alone: no padding, no batch, its own videos."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids, mm_token_type_ids=modality_of(ids, processor), **join_videos([videos], "cpu")).logits
    return torch.log_softmax(logits[0, len(prompt) - 1 :].float() / TEMPERATURE, dim=-1)


def plain_logps(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    prompt: Sequence[int],
    completion: Sequence[int],
    videos: VideoFields,
) -> torch.Tensor:
    """Log-probabilities of a completion, of :func:`plain_distributions`."""
    logps = plain_distributions(model, processor, prompt, completion, videos)[:-1]
    return logps.gather(1, torch.tensor(completion)[:, None])[:, 0]


def prepared(trainer: GRPOTrainer) -> list[dict[str, Any]]:
    """The rollouts of one step, scored, in the slices that its loss is computed on."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    slices: list[dict[str, Any]] | None = trainer._buffered_inputs
    assert slices is not None
    return slices


def prompt_of(inputs: dict[str, Any], row: int) -> tuple[int, ...]:
    """The ids of a row's prompt, without padding."""
    return tuple(inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].tolist())


def worst_errors(
    trainer: GRPOTrainer,
    slices: Sequence[dict[str, Any]],
    videos_of: dict[tuple[int, ...], VideoFields],
    reference: PreTrainedModel,
) -> dict[str, float]:
    """Largest difference to the plain log-probabilities over all slices: for the loss and the old
    policy to those of the policy, for the reference policy to those of ``reference``."""
    seen: list[torch.Tensor] = []
    original = trainer._get_per_token_logps_and_entropies

    def recording(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        seen.append(result[0].detach())
        return result

    trainer._get_per_token_logps_and_entropies = recording
    worst = {"loss": 0.0, "old": 0.0, "reference": 0.0}
    for inputs in slices:
        seen.clear()
        trainer._compute_loss(trainer.model, inputs)
        (of_loss,) = seen
        found = {"loss": of_loss, "old": inputs["old_per_token_logps"], "reference": inputs["ref_per_token_logps"]}
        for row in range(len(inputs["prompt_ids"])):
            prompt = prompt_of(inputs, row)
            length = int(inputs["completion_mask"][row].sum())
            completion = inputs["completion_ids"][row][:length].tolist()
            with torch.no_grad():
                of_policy, of_reference = (
                    plain_logps(model, trainer.processing_class, prompt, completion, videos_of[prompt])
                    for model in (trainer.model, reference)
                )
            for name, expected in (("loss", of_policy), ("old", of_policy), ("reference", of_reference)):
                error = float((found[name][row, :length] - expected).abs().max())
                assert math.isfinite(error), "max() passes over NaN"
                worst[name] = max(worst[name], error)
    return worst


def rows_of(inputs: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Some rows of a generation, as one step of accumulation gets them."""

    def some(value: Any) -> Any:
        if isinstance(value, list):
            return [value[row] for row in rows]
        return value[list(rows)] if isinstance(value, torch.Tensor) and value.ndim else value

    return {name: some(value) for name, value in inputs.items()}


def gradients(trainer: VideoGRPOTrainer, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    trainer.model.zero_grad()
    trainer._compute_loss(trainer.model, inputs).backward()
    return {name: weight.grad.clone() for name, weight in trainer.model.named_parameters() if weight.grad is not None}


def without_rows_that_teach_nothing(
    trainer: VideoGRPOTrainer, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[int], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients of a generation as the trainer takes them, and those with every row; and first, how
    many rows pass through the model in each."""
    rows: list[int] = []
    forward = trainer._get_per_token_logps_and_entropies

    def counting(model: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(input_ids))
        return forward(model, input_ids, *args, **kwargs)

    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", counting)
    fewer = gradients(trainer, inputs)
    monkeypatch.setattr("stages.grpo.trainer.with_advantage", lambda inputs, _: inputs)
    return rows, fewer, gradients(trainer, inputs)
