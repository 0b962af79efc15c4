"""Tiny models of the three families, random frames, and rows for training that takes a second."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from stages.base.tiny import build_tiny
from stages.domain.core.frames import Frames
from stages.domain.core.records import Sample, Score, TaskName
from stages.grpo.rollout_log import RolloutLog
from stages.grpo.step import StepScores
from stages.lib.models.load import save_model
from stages.lib.models.processor import encode_prompts, training_batch
from stages.lib.training.loop import Hooks
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


def examples_of_colours(count: int) -> list[Example]:
    """Examples of two tasks in turn; the colour is seen, nowhere said in the prompt."""

    def example(i: int) -> Example:
        shown = tinted(i, i % 3)
        return Example(
            f"s{i}", "caption" if i % 2 else "mcqa", f"What colour is number {i}?", REPLIES[i % 3], lambda: shown
        )

    return [example(i) for i in range(count)]


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


def save_overfitted(shown: Sequence[tuple[str, Sequence[Frames]]], replies: Sequence[str], folder: Path) -> None:
    """Overfit a tiny model, in a second or two, to give these replies to prompts with their videos,
    and save it."""
    model, processor = tiny("qwen2_5_vl")
    batch = training_batch(processor, encode_prompts(processor, shown), replies)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(60):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_model(model.eval(), processor, folder)


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
    "watch": None,
    "learning_rates": None,
    "max_prompt_tokens": None,
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
        "sampler": "mixture",
        "oversample": None,
        "staleness": 0,
        "sampling_ratio_cap": 2.0,
        "gauges_every": 0,
        "gradients_every": 0,
        "beta": 0.0,
        "epsilon": 0.2,
        "epsilon_high": 0.2,
        "iterations": 1,
        "delta": None,
        "entropy": None,
        "mask_truncated": False,
        "overlong": None,
        "mixed": None,
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

    @property
    def hooks(self) -> Hooks:
        return Hooks(self.on_metrics, self.on_checkpoint)


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


def rollout_log(examples: Sequence[Example], row: GrpoRow, scratch: Path) -> RolloutLog:
    """Keeps rollouts as the stage does; nobody looks at the pages."""
    samples = {example.sample_id: sample_of(example) for example in examples}
    shown = {example.sample_id: example.load for example in examples}
    texts = load_params(ROOT / "params.yaml").prompt
    return RolloutLog("grpo@bridge", row, scratch, samples, texts, lambda s: shown[s.sample_id](), lambda *_: None)


#: One value a reply, by prompts' keys and replies; None: there is none.
Reward = Callable[[Any, Any], Sequence[float | None]]


def share_by_length(_: Any, replies: Sequence[str]) -> list[float | None]:
    return [min(1.0, len(reply) / 100) for reply in replies]


def nothing(*_: Any) -> dict[str, float]:
    return {}


class Paying:
    """Rewards by plain functions in place of a judge.

    Args:
        objectives: each is called once a round, in order; the first is the total.
        shares: share of the task's maximum, of the rollouts and of replies to other videos.
        well_formed: of one reply.
        gauges: of keys, replies and the total.
        tasks: by key; "caption" where none is named.
        on_masked: called with the counts of :meth:`check_masked`.
    """

    def __init__(
        self,
        objectives: Mapping[str, Reward] | Reward,
        *,
        weights: Mapping[str, float] | None = None,
        shares: Reward = share_by_length,
        well_formed: Callable[[str], bool] = lambda _: False,
        gauges: Callable[[Any, Any, Any], Mapping[str, float]] = nothing,
        control_gauges: Callable[[float, float | None, float | None], Mapping[str, float]] = nothing,
        tasks: Mapping[str, str] | None = None,
        on_masked: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        self.objectives: Mapping[str, Reward] = objectives if isinstance(objectives, Mapping) else {"task": objectives}
        self.weights = weights or dict.fromkeys(self.objectives, 1.0)
        self.shares, self.well_formed, self.gauges, self.control_gauges = shares, well_formed, gauges, control_gauges
        self.tasks, self.check_masked = tasks or {}, on_masked
        #: Keys and texts of the written replies among those that were scored.
        self.written: list[tuple[str, str]] = []

    def score(self, ids: Sequence[str], replies: Sequence[str], written: Collection[int] = ()) -> StepScores:
        self.written += [(ids[row], replies[row]) for row in written]
        paid = {name: list(function(ids, replies)) for name, function in self.objectives.items()}
        total = next(iter(paid.values()))
        scores = [
            Score(
                sample_id=i,
                task=cast("TaskName", self.tasks.get(i, "caption")),
                reply=reply,
                format_ok=self.well_formed(reply),
                value=share,
            )
            for i, reply, share in zip(ids, replies, self.shares(ids, replies), strict=True)
        ]
        return StepScores(scores, total, paid, self.gauges(ids, replies, total))


def tasks_of(examples: Sequence[Example]) -> dict[str, str]:
    return {example.sample_id: example.task for example in examples}
