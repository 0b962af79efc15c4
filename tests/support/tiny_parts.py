"""Tiny models of the three families, random frames, and rows for training that takes a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from stages.base.tiny import build_tiny
from stages.domain.core.frames import Frames
from stages.domain.core.records import Sample, Score
from stages.domain.rl.rollouts import shown_groups
from stages.grpo.rollout_log import Showing
from stages.lib.training.mixture import Example
from stages.params import GrpoRow, SftRow, TinyModelParams, load_params
from tests.support.checkout import ROOT

torch.set_num_threads(1)

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
COLOURS = ("red", "green", "blue")
SCAFFOLDING = ('{"subjects":[{"name":"', '","attributes":["', '","', '"],"actions":["', '"]}]}', '"]},{"name":"')
REPLIES = tuple(f"<think>it is {colour}</think><answer>a {colour} bar</answer>" for colour in COLOURS)


def frames(seed: int, count: int = 4, size: tuple[int, int] = (32, 32)) -> Frames:
    """`count` random frames, every second one of a timeline at 8 frames a second."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    return Frames(pixels, tuple(range(0, 2 * count, 2)), 2 * count, Fraction(8))


def tinted(seed: int, colour: int) -> Frames:
    noise = frames(seed)
    pixels = noise.pixels // 4
    pixels[..., colour] += 190
    return Frames(pixels, noise.indices, noise.total, noise.rate)


def tiny_params(family: str) -> TinyModelParams:
    return TinyModelParams.model_validate(
        {
            "kind": "tiny",
            "family": family,
            "precision": "fp32",
            "vocabulary": 320,
            "text": {"width": 64, "layers": 2, "heads": 2, "kv_heads": 1, "mlp_width": 64, "rope_theta": 10_000.0},
            "vision": {"width": 32, "layers": 2, "heads": 2, "mlp_width": 64, "patch_px": 8, "merge": 2},
        }
    )


def tiny(family: str, seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    texts = [*REPLIES, "What colour is number 0 1 2 3 4 5 6 7 8 9?", "4 5 seconds"]
    return build_tiny(tiny_params(family), texts, SCAFFOLDING, seed)


#: Adapters on every matrix of the language model's layers.
LORA: dict[str, Any] = {
    "rank": 4,
    "alpha": 8,
    "dropout": 0.0,
    "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}

_SHARED: dict[str, Any] = {
    "init": "base",
    "tasks": {"caption": 1, "mcqa": 2},
    "warmup_steps": 1,
    "schedule": "constant_with_warmup",
    "weight_decay": 0.0,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "precision": "fp32",
    "gradient_checkpointing": False,
    "freeze": [],
    "lora": None,
}


def sft_row(**changes: Any) -> SftRow:
    values = {
        "steps": 6,
        "samples_per_step": 8,
        "samples_per_device": 4,
        "learning_rate": 3e-3,
        "save_steps": 2,
        "careless_share": 0.0,
        "brief_share": {},
    }
    return SftRow.model_validate({**_SHARED, **values, **changes})


def grpo_row(**changes: Any) -> GrpoRow:
    values = {
        "samples": "data/samples",
        "steps": 6,
        "prompts_per_step": 4,
        "completions_per_device": 8,
        "rollouts": 4,
        "learning_rate": 1e-3,
        "save_steps": 2,
        "temperature": 1.0,
        "max_completion_tokens": 8,
        "loss": "dapo",
        "scale_rewards": "group",
        "importance": "token",
        "resample_rounds": 0,
        "aggregation": "sum",
        "leave_out": (),
        "length": None,
        "temporal_contrast": None,
        "controls_every": 0,
        "beta": 0.0,
        "epsilon": 0.2,
        "epsilon_high": 0.2,
        "iterations": 1,
    }
    return GrpoRow.model_validate({**_SHARED, **values, **changes})


class Seen:
    """Collects what training reports while it runs."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.saved: list[tuple[str, bool]] = []

    def on_metrics(self, step: int, values: dict[str, float]) -> None:
        self.metrics.append((step, values))

    def on_checkpoint(self, checkpoint: Any, folder: Path) -> None:
        assert (folder / "model.safetensors").is_file()
        self.saved.append((checkpoint.path, checkpoint.final))


def length_reward(_: Any, replies: Any) -> list[float]:
    """Longer is better: something that a random start can learn in a few steps."""
    return [float(len(reply)) for reply in replies]


def sample_of(example: Example) -> Sample:
    return Sample.model_validate(
        {
            "sample_id": example.sample_id,
            "task": example.task,
            "split": "train",
            "clip_id": "c",
            "timeline": {"rate": "8", "segments": [{"clip_id": "c", "span": {"start": 0, "stop": 8}}]},
            "sampled_frames": 4,
            "question": example.prompt,
            "reference": "a bar",
        }
    )


def showing(examples: Sequence[Example], rollouts: int) -> Showing:
    """Keeps rollouts as the stage does; what they are worth is the length of a reply as a share of 100 characters."""
    samples, texts = {example.sample_id: sample_of(example) for example in examples}, load_params(ROOT / "params.yaml").prompt

    def scores(ids: Sequence[str], replies: Sequence[str]) -> list[Score]:
        return [
            Score(sample_id=i, task=samples[i].task, reply=reply, format_ok=False, value=min(1.0, len(reply) / 100))
            for i, reply in zip(ids, replies, strict=True)
        ]

    return Showing(scores, lambda step, drawn: shown_groups(step, drawn, rollouts, samples, texts))


Reward = Callable[[Any, Any], list[float | None]]
