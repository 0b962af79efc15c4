"""Cost of a GRPO step on video, against plain TRL, as ratios within one run: ``make bench-grpo``.

Trainers take the same number of prompts, rollouts and tokens on the tiny model: TRL's own, which
generates with the video and computes its loss *without* it; ours with nothing saved, so that each
rollout's video goes through the tower; ours; ours with the tower frozen; and ours with the gauges
by task, and the cosines between gradients, at every step. CPU seconds of a step count, their median
over the steps after the first two.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.machine import keep
from stages.base.tiny import build_tiny
from stages.domain.core.frames import Frames
from stages.domain.core.records import Sample, Score
from stages.domain.core.replies import render_reply
from stages.domain.core.timeline import plain
from stages.domain.tasks.rewards import Referee
from stages.grpo import trainer as grpo_trainer
from stages.grpo import video as grpo_video
from stages.grpo.step import StepScores
from stages.grpo.train import ENCODED_BYTES, cached_encoder
from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.judging.batch import score_replies
from stages.lib.judging.build import judge_of
from stages.lib.judging.embedder import LexicalEmbedder
from stages.lib.models.load import freeze, save_model, use_threads
from stages.lib.models.processor import placeholder_ids
from stages.lib.training.mixture import Example
from stages.lib.video.encoder import encode
from stages.params import OpenAIJudgeParams, TinyModelParams, load_params
from stages.runtime.machine import measured

RATE, FRAMES, SIZE = Fraction(8), 16, 64
PROMPTS, ROLLOUTS, TOKENS = 8, 8, 24


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


def video(number: int) -> Frames:
    pixels = (
        np.random.default_rng(number)
        .integers(0, 256, (FRAMES, 4, 4, 3), np.uint8)
        .repeat(SIZE // 4, 1)
        .repeat(SIZE // 4, 2)
    )
    return Frames(pixels, tuple(range(FRAMES)), FRAMES, RATE)


def config(folder: Path, processor: Any, steps: int, **changes: Any) -> GRPOConfig:
    # Every reply has the same length, so that all three do the same work.
    generation = {"suppress_tokens": placeholder_ids(processor), "min_new_tokens": TOKENS}
    return GRPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=PROMPTS * ROLLOUTS,
        num_generations=ROLLOUTS,
        max_completion_length=TOKENS,
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
    """Rewards that differ within every group, so that no row can be left out of the loss."""
    return [float(i % ROLLOUTS) for i in range(len(completions))]


class Rewarded:
    """The same rewards in the form that our trainer takes."""

    weights: Mapping[str, float] = {"rewards": 1.0}

    def score(self, ids: Sequence[str], replies: Sequence[str]) -> StepScores:
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


def plain_trl(folder: Path, steps: int, examples: int) -> Seen:
    model, processor = fresh(folder / "model")
    prompts = []
    for number in range(examples):
        path = folder / f"{number}.mp4"
        encode(video(number).pixels, RATE, path, crf=10)
        content = [
            {"type": "video", "video": str(path), "text": None},
            {"type": "text", "video": None, "text": "what happens ?"},
        ]
        prompts.append([{"role": "user", "content": content}])
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=config(folder, processor, steps),
        train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
        processing_class=processor,
    )
    seen = Seen()
    watch(trainer, seen)
    trainer.train()
    return seen


def ours(folder: Path, steps: int, examples: int, *, saving: bool, frozen: bool = False, **watched: int) -> Seen:
    model, processor = fresh(folder / "model")
    if frozen:
        freeze(model, ["vision"])
    by_id = {
        f"s{n}": Example(f"s{n}", "caption", "what happens ?", None, load=lambda n=n: video(n)) for n in range(examples)
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
            args=config(folder, processor, steps),
            train_dataset=datasets.Dataset.from_dict({"prompt": list(by_id)}),
            processing_class=processor,
            **watched,
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
        ):
            train()
    return seen


def fresh(folder: Path) -> tuple[Any, Any]:
    params = load_params("infra/recipes/tiny.yaml").model
    assert isinstance(params, TinyModelParams)
    model, processor = build_tiny(params, ["what happens ? the red bar rises then grows"], (), 0)
    save_model(model, processor, folder)
    model.config._name_or_path = str(folder)
    return model, processor


class SlowJudge(BaseHTTPRequestHandler):
    """Judge that answers every question after a second, as a large model does: right."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(1.0)
        verdict = {"choices": [{"message": {"content": json.dumps({"reason": "says it", "score": 2})}}], "usage": {}}
        body = json.dumps(verdict).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Listener(ThreadingHTTPServer):
    request_queue_size = 128


def judging(verdicts: int) -> tuple[float, int]:
    """Wall seconds for so many verdicts from a judge that takes a second for each, and how many of
    them were scored.
    """
    sample = Sample(
        sample_id="s",
        task="dark_event_infer",
        split="train",
        clip_id="c",
        timeline=plain("c", FRAMES, RATE),
        sampled_frames=FRAMES,
        question="what happens in the dark part ?",
        reference="the red bar rises",
        events=("the red bar rises",),
    )
    params = OpenAIJudgeParams.model_validate(
        {
            "kind": "openai",
            "model": "slow",
            "revision": "1",
            "temperature": 0.0,
            "max_tokens": 64,
            "seed": 1,
            "max_unavailable": 0.0,
        }
    )
    with tempfile.TemporaryDirectory() as folder, Listener(("127.0.0.1", 0), SlowJudge) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        with patch.dict(os.environ, {"VIDBRIDGE_JUDGE_URL": url, "VIDBRIDGE_JUDGE_CACHE": folder}):
            referee = Referee(judge_of(params), LexicalEmbedder())
            replies = [render_reply("it rises", f"the red bar rises {number}") for number in range(verdicts)]
            began = time.perf_counter()
            scores = score_replies(
                [sample] * verdicts, replies, referee, load_params("infra/recipes/tiny.yaml").rewards
            )
            seconds = time.perf_counter() - began
        server.shutdown()
    return seconds, sum(score.value == 1.0 for score in scores)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grpo", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=10, help="optimiser steps of each trainer (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/grpo.md"))
    arguments = parser.parse_args()
    use_threads()
    # TRL 1.16 asks transformers 5.23 by a name that has a successor.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # Half of the prompts are new in a step of the first epoch, and all have been seen in the later
    # ones.
    examples = 2 * PROMPTS
    trainers: dict[str, Callable[[Path], Seen]] = {
        "plain TRL (its loss does not see the video)": lambda folder: plain_trl(folder, arguments.steps, examples),
        "ours, nothing saved": lambda folder: ours(folder, arguments.steps, examples, saving=False),
        "ours": lambda folder: ours(folder, arguments.steps, examples, saving=True),
        "ours, vision tower frozen": lambda folder: ours(folder, arguments.steps, examples, saving=True, frozen=True),
        "ours, gauges by task at every step": lambda folder: ours(
            folder, arguments.steps, examples, saving=True, gauges_every=1
        ),
        "ours, gradients by task at every step": lambda folder: ours(
            folder, arguments.steps, examples, saving=True, gradients_every=1
        ),
    }
    found = {}
    for name, run in trainers.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = run(Path(folder))
    prompts = PROMPTS * arguments.steps
    plain = found["plain TRL (its loss does not see the video)"].step
    lines = [
        measured("torch", "transformers", "trl"),
        "",
        f"{PROMPTS} prompts x {ROLLOUTS} rollouts x {TOKENS} tokens a step, {FRAMES} frames of {SIZE} px,"
        f" {arguments.steps} steps of the model of recipe `tiny`. All prompts have been seen after two steps.",
        "",
        "| trainer | CPU s a step | against plain TRL | videos through the tower a prompt: rollouts | loss"
        " | waiting for video after the first epoch |",
        "|---|---|---|---|---|---|",
    ]
    for name, seen in found.items():
        waiting = "" if name.startswith("plain") else f"{100 * sum(seen.waited[2:]) / sum(seen.steps[2:]):.1f}%"
        lines.append(
            f"| {name} | {seen.step:.2f} | {seen.step / plain:.2f} | {seen.videos['rollouts'] / prompts:.2f}"
            f" | {seen.videos['loss'] / prompts:.2f} | {waiting} |"
        )
    seconds, scored = judging(64)
    lines += [
        "",
        f"64 verdicts from a judge that takes 1 s for each: {seconds:.1f} s ({scored} scored; one by one: 64 s).",
    ]
    keep(lines, arguments.out)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
