"""Trainers that take the same number of prompts, rollouts and tokens: TRL's own, and ours."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.grpo.subject import RATE, Shape, build, tiny_params, video
from stages.domain.core.records import Score
from stages.grpo import trainer as grpo_trainer
from stages.grpo.policy import video as grpo_video
from stages.grpo.step import StepScores
from stages.grpo.train import ENCODED_BYTES, cached_encoder
from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.models.load import freeze, save_model
from stages.lib.models.packing import SWITCH
from stages.lib.models.processor import placeholder_ids
from stages.lib.training.mixture import Example


@dataclass
class Seen:
    """Counters of a training. ``steps``: CPU seconds of each. ``videos``: how many the tower
    processed, during generation and in the loss. ``waited``: CPU seconds spent on decoding and
    processing videos, a step.
    """

    steps: list[float] = field(default_factory=list)
    videos: Counter[str] = field(default_factory=Counter)
    waited: list[float] = field(default_factory=list)

    @property
    def step(self) -> float:
        return statistics.median(self.steps[2:])


class Clock(TrainerCallback):
    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.process_time()
        self.seen.waited.append(0.0)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seen.steps.append(time.process_time() - self.began)


def config(folder: Path, processor: Any, shape: Shape, steps: int, **changes: Any) -> GRPOConfig:
    # Every reply has the same length, so that all three do the same work.
    generation = {"suppress_tokens": placeholder_ids(processor), "min_new_tokens": shape.tokens}
    return GRPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=shape.prompts * shape.rollouts,
        num_generations=shape.rollouts,
        max_completion_length=shape.tokens,
        max_steps=steps,
        temperature=1.0,
        beta=0.0,
        loss_type="dapo",
        generation_kwargs=generation,
        activation_checkpointing=False,
        gradient_checkpointing=None,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        seed=3,
        **changes,
    )


def watch(trainer: GRPOTrainer, seen: Seen) -> None:
    """Count the videos that the vision tower processes, and time the steps."""
    tower = trainer.model.base_model.visual
    forward = tower.forward

    def counting(pixels: torch.Tensor, grid_thw: torch.Tensor, **kwargs: Any) -> Any:
        seen.videos["loss" if torch.is_grad_enabled() and trainer.model.training else "rollouts"] += len(grid_thw)
        return forward(pixels, grid_thw=grid_thw, **kwargs)

    tower.forward = counting
    trainer.add_callback(Clock(seen))
    trainer.remove_callback(PrinterCallback)


def rewards(completions: Sequence[Any], **_: Any) -> list[float]:
    """Rewards that differ within every group of two or more, so that no row can be left out of the
    loss."""
    return [float(i % 2) for i in range(len(completions))]


class Rewarded:
    """The same rewards in the form that our trainer takes."""

    weights: Mapping[str, float] = {"rewards": 1.0}

    def score(self, ids: Sequence[str], replies: Sequence[str], written: Collection[int] = ()) -> StepScores:  # noqa: ARG002
        paid = rewards(replies)
        scores = [
            Score(sample_id=i, task="caption", reply=reply, format_ok=False, value=0.0)
            for i, reply in zip(ids, replies, strict=True)
        ]
        return StepScores(scores, paid, {"rewards": paid}, {})

    def shares(self, _: Sequence[str], replies: Sequence[str]) -> list[float]:
        return [0.0] * len(replies)

    def control_gauges(self, *_: float | None) -> dict[str, float]:
        return {}

    def check_masked(self, *_: int) -> None:
        """Check that every rollout has a reward."""


def plain_trl(folder: Path, shape: Shape, steps: int, examples: int) -> Seen:
    # Needs ffmpeg, which a machine with a GPU may lack.
    from stages.lib.video.encoder import encode

    model, processor = fresh(folder / "model")
    prompts = []
    for number in range(examples):
        path = folder / f"{number}.mp4"
        encode(video(shape, number).pixels, RATE, path, crf=10)
        content = [
            {"type": "video", "video": str(path), "text": None},
            {"type": "text", "video": None, "text": "what happens ?"},
        ]
        prompts.append([{"role": "user", "content": content}])
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=config(folder, processor, shape, steps),
        train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
        processing_class=processor,
    )
    seen = Seen()
    watch(trainer, seen)
    trainer.train()
    return seen


def ours(
    folder: Path,
    shape: Shape,
    steps: int,
    examples: int,
    *,
    saving: bool = True,
    frozen: bool = False,
    gauges_every: int = 0,
    gradients_every: int = 0,
) -> Seen:
    model, processor = fresh(folder / "model")
    if frozen:
        freeze(model, ["vision"])
    by_id = {
        f"s{n}": Example(f"s{n}", "caption", "what happens ?", None, load=partial(video, shape, n))
        for n in range(examples)
    }
    seen = Seen()
    stored = cached_encoder(processor, by_id, ENCODED_BYTES if saving else 0)

    def encoded(keys: Sequence[str]) -> Any:
        began = time.process_time()
        rows = stored(keys)
        seen.waited[-1] += time.process_time() - began
        return rows

    def train() -> None:
        trainer = VideoGRPOTrainer(
            encode=encoded,
            model=model,
            rewards=Rewarded(),
            args=config(folder, processor, shape, steps),
            train_dataset=datasets.Dataset.from_dict({"prompt": list(by_id)}),
            processing_class=processor,
            gauges_every=gauges_every,
            gradients_every=gradients_every,
        )
        watch(trainer, seen)
        trainer.train()

    if saving:
        train()
    else:
        nothing: Callable[..., Any] = lambda *_: None  # noqa: E731
        with (
            patch.object(grpo_video, "encode_equal_videos_once", nothing),
            patch.object(grpo_trainer, "with_advantage", lambda inputs, _: inputs),
            patch.dict(os.environ, {SWITCH: "0"}),
        ):
            train()
    return seen


def fresh(folder: Path) -> tuple[Any, Any]:
    model, processor = build(tiny_params())
    save_model(model, processor, folder)
    model.config._name_or_path = str(folder)
    return model, processor
