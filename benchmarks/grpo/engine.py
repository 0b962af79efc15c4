"""Rollouts by the engine against this project's own decoding, and one generation ahead against
none: ``make bench-engine``.

The tiny model's architecture with a random start; replies of one length. Seconds are wall time, as
two processes share the work: both cores must be idle.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from benchmarks.grpo.subject import Shape, build, tiny_params, video
from benchmarks.grpo.trainers import Rewarded, config
from benchmarks.machine import keep
from stages.domain.core.frames import Frames
from stages.grpo.policy.engine import EngineRollouts
from stages.grpo.prompts.ahead import Ahead
from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.engine.connection import Connection, DrawnFor
from stages.lib.engine.process import EngineProcess, EngineSettings
from stages.lib.engine.weights import WeightsFolder
from stages.lib.inference.decode import Limits, SeededDraws, decode
from stages.lib.models.load import load_model, save_model, use_threads
from stages.lib.models.processor import encode_prompts, placeholder_ids
from stages.runtime.machine import measured

SHAPES = (Shape(), Shape(tokens=128), Shape(prompts=2, tokens=48, frames=32, size=256))
PROMPT = "what happens ?"
MOST_TOKENS = 2048


class _Wall(TrainerCallback):
    """Wall time of each step."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.monotonic()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.steps.append(time.monotonic() - self._began)


def wall_s(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


class Engine:
    """An engine with the model in a folder. ``syncs``: seconds that new weights took."""

    def __init__(self, folder: Path, process: EngineProcess, weights: WeightsFolder) -> None:
        self.folder, self.client = folder, process.client
        self.model, self.processor = load_model(folder, "fp32")
        self.syncs: list[float] = []
        self._weights = weights

    def renew(self) -> None:
        """Publish and load the weights, after which the engine has forgotten all prompts."""
        began = time.monotonic()
        published = self._weights.publish("benchmark", self.model.save_pretrained, 1 << 24)
        self.client.load_weights(published.folder, published.name)
        self.syncs.append(time.monotonic() - began)

    def rollouts(self, shape: Shape) -> EngineRollouts:
        drawn_for = DrawnFor("benchmark", self.folder, "fp32", MOST_TOKENS, self.folder, size_bytes=1 << 24)

        def shown(key: str) -> tuple[str, Sequence[Frames]]:
            return PROMPT, (video(shape, int(key)),)

        connection = Connection("benchmark", self.client, self._weights, None, "fail")
        return EngineRollouts(drawn_for, connection, self.processor, shown)


def batch(engine: Engine, shape: Shape, runs: int) -> tuple[float, float]:
    """Seconds of a batch by decoding here and by the engine, in turn."""
    keys = [f"{n}" for n in range(shape.prompts) for _ in range(shape.rollouts)]
    encoded = encode_prompts(engine.processor, [(PROMPT, (video(shape, n),)) for n in range(shape.prompts)])
    rows, seeds = [encoded[int(key)] for key in keys], [f"{n}" for n in range(len(keys))]
    never = tuple(placeholder_ids(engine.processor))
    limits = Limits(shape.tokens, (int(engine.processor.tokenizer.eos_token_id),), never, min_new_tokens=shape.tokens)
    rollouts = engine.rollouts(shape)

    def here() -> None:
        draws = SeededDraws(seeds, 1.0, torch.device("cpu"))
        decode(engine.model, engine.processor, rows, draws, limits, logps_at=1.0)

    taken: dict[str, list[float]] = {"here": [], "engine": []}
    for _ in range(runs + 1):  # the first warms up
        taken["here"].append(wall_s(here))
        engine.renew()
        taken["engine"].append(wall_s(lambda: rollouts.draw(keys, rows, seeds, limits, 1.0)))
    own, theirs = (statistics.median(times[1:]) for times in taken.values())
    return own, theirs


def step_s(folder: Path, shape: Shape, steps: int, staleness: int, rollouts: EngineRollouts | None) -> float:
    """Seconds of a step of training."""
    model, processor = load_model(folder, "fp32")
    keys = [f"{n}" for n in range(2 * shape.prompts)]
    prompts = [keys[n % len(keys)] for n in range(steps * shape.prompts)]

    def encoded(rows: Sequence[str]) -> Any:
        return encode_prompts(processor, [(PROMPT, (video(shape, int(key)),)) for key in rows])

    def prompts_of(generation: int) -> list[str]:
        return prompts[generation * shape.prompts : (generation + 1) * shape.prompts]

    with tempfile.TemporaryDirectory() as out:
        trainer = VideoGRPOTrainer(
            encode=encoded,
            model=model,
            rewards=Rewarded(),
            args=config(Path(out), processor, shape, steps, shuffle_dataset=False),
            train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
            processing_class=processor,
            ahead=Ahead(staleness, steps, prompts_of, rollouts),
        )
        wall = _Wall()
        trainer.add_callback(wall)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return statistics.median(wall.steps[3:])


def line_of(engine: Engine, shape: Shape, runs: int, steps: int) -> str:
    """Measure one size of a step; its line of the table."""
    here, vllm = batch(engine, shape, runs)
    own, none, ahead = (
        step_s(engine.folder, shape, steps, staleness, rollouts)
        for staleness, rollouts in ((0, None), (0, engine.rollouts(shape)), (1, engine.rollouts(shape)))
    )
    return (
        f"| {shape.prompts} x {shape.rollouts} x {shape.tokens}, {shape.frames} of {shape.size} px | {here:.2f}"
        f" | {vllm:.2f} | {vllm / here:.2f} | {own:.2f} | {none:.2f} | {ahead:.2f} | {ahead / none:.2f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grpo.engine", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed/engine.md"))
    arguments = parser.parse_args()
    use_threads()
    lines = [
        measured("torch", "transformers"),
        "",
        "| prompts x rollouts x tokens, frames | a batch: decoded here, s | by vLLM, s | vLLM / here | a step: decoded"
        " here, s | by vLLM, s | by vLLM one ahead, s | one ahead / none |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        save_model(*build(tiny_params()), folder)
        settings = EngineSettings.from_environment("float32", MOST_TOKENS)
        with (
            EngineProcess.start(folder, settings, progress=print) as process,
            WeightsFolder(Path(place) / "weights", folder) as weights,
        ):
            engine = Engine(folder, process, weights)
            version = engine.client.health().versions["vllm"]
            lines += [line_of(engine, shape, arguments.runs, arguments.steps) for shape in SHAPES]
    lines += [
        "",
        f"vLLM {version}. New weights, published and loaded: {statistics.median(engine.syncs):.2f} s. Medians of"
        f" {arguments.runs} batches, in turn, and of the steps of {arguments.steps} after the third.",
    ]
    keep(lines, arguments.out)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
