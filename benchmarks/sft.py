"""Cost of a supervised step of the recipe `tiny`, as ratios within one run: ``make bench-sft``.

The row's trainer takes the same samples in padded rows (a shard a step, as one device that holds
all of it would), in packed rows, and in packed rows on two processes. The variants take turns, each
in processes of its own. CPU seconds of a step are those of all its processes, decoding and start
left out; wall seconds mean something on idle cores only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
from transformers import TrainerCallback

from benchmarks.machine import keep
from stages.base.tiny import build_tiny
from stages.domain.core.frames import Frames
from stages.lib.models.load import save_model
from stages.lib.models.packing import SWITCH
from stages.lib.training.loop import Hooks
from stages.lib.training.mixture import Example
from stages.params import TinyModelParams, load_params
from stages.runtime.machine import measured
from stages.runtime.ranks.distributed import launch
from stages.sft import train
from stages.sft.trainer import Trainer

EXAMPLES = 256
#: Of each video: sampled frames and their sides.
FRAMES, SIZE = 8, 64
RECIPE = "infra/recipes/tiny.yaml"
WORDS = (
    *("the", "then", "red", "green", "blue", "yellow", "bar", "circle", "pillar"),
    *("rises", "falls", "grows", "shrinks", "advances", "retreats"),
)
#: Steps that are not counted: the first ones allocate.
SKIPPED = 3


@dataclass(frozen=True)
class Variant:
    """How a step is taken."""

    ranks: int
    shards: int
    packed: bool


VARIANTS = {
    "padded rows, one shard": Variant(1, 1, packed=False),
    "packed rows, one shard": Variant(1, 1, packed=True),
    "packed rows, two shards": Variant(1, 2, packed=True),
    "packed rows, two shards on two processes": Variant(2, 2, packed=True),
}


class Clock(TrainerCallback):
    """CPU and wall seconds of this process at the start of each step, and at the end."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.marks.append((time.process_time(), time.perf_counter()))

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.marks.append((time.process_time(), time.perf_counter()))


def video(number: int) -> Frames:
    pixels = np.random.default_rng(number).integers(0, 256, (FRAMES, SIZE, SIZE, 3), np.uint8)
    return Frames(pixels, tuple(range(0, 2 * FRAMES, 2)), 2 * FRAMES, Fraction(8))


def example(number: int) -> Example:
    """An example whose lengths are those of the recipe: prompts of about 55 tokens, replies of 10
    to 20."""
    rng = Random(number)
    words = [rng.choice(WORDS) for _ in range(rng.randrange(4, 14))]
    shown = video(number)
    return Example(str(number), "caption", " ".join(words), " ".join(words[:9]), lambda: shown)


def take_steps(home: Path, shards: int, steps: int) -> int:
    """Train, as one of the processes or as their start; each writes the seconds of its steps."""
    arguments = ("--take", str(home), str(shards), "--steps", str(steps))
    if (status := launch("benchmarks.sft", arguments)) is not None:
        return status
    row = load_params(RECIPE).sft["cold-start"]
    changes = {"steps": steps, "save_steps": steps, "warmup_steps": 1, "tasks": {"caption": 1}}
    row = row.model_copy(update=changes | {"samples_per_device": row.samples_per_step // shards})
    clock = Clock()
    with patch.object(train, "Trainer", partial(Trainer, callbacks=[clock])):
        train.train_sft(
            home.parent / "model",
            [example(number) for number in range(EXAMPLES)],
            row,
            stage="sft@bench",
            seed=1,
            out=home / "out",
            scratch=home / "scratch",
            hooks=Hooks(lambda *_: None, lambda *_: None),
        )
    (home / f"marks-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(clock.marks[SKIPPED:]))
    return 0


def seconds(variant: Variant, steps: int, home: Path) -> tuple[float, float]:
    """CPU seconds, of all processes, and wall seconds of a step, in processes of their own."""
    home.mkdir()
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.sft"]
    subprocess.run(
        [*command, "--take", str(home), str(variant.shards), "--steps", str(steps)],
        env=os.environ
        | {"VIDBRIDGE_RANKS": str(variant.ranks), SWITCH: str(int(variant.packed)), "CUDA_VISIBLE_DEVICES": ""},
        stderr=subprocess.DEVNULL,
        check=True,
    )
    marks = [json.loads(path.read_text()) for path in sorted(home.glob("marks-*.json"))]
    assert len(marks) == variant.ranks
    cpu, wall = (
        [[after[kind] - before[kind] for before, after in pairwise(rank)] for rank in marks] for kind in (0, 1)
    )
    return sum(statistics.fmean(of_rank) for of_rank in cpu), max(statistics.fmean(of_rank) for of_rank in wall)


def table(found: Mapping[str, list[tuple[float, float]]], rounds: int, steps: int) -> list[str]:
    """Rows with the median over rounds, and ratios to the first variant of the same round."""
    first = next(iter(found.values()))
    lines = [
        measured("torch", "transformers", "trl"),
        "",
        f"| step of 32 samples (median of {rounds} rounds of {steps} steps) | CPU s | ratio | wall s | ratio |",
        "|---|---|---|---|---|",
    ]
    for name, rows in found.items():
        cells = []
        for kind in (0, 1):
            ratios = [row[kind] / base[kind] for row, base in zip(rows, first, strict=True)]
            cells.append(f"{statistics.median(row[kind] for row in rows):.3f} | {statistics.median(ratios):.2f}")
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sft", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=30, help="optimiser steps of each run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each variant (default: %(default)s)")
    parser.add_argument("--take", nargs=2, metavar=("FOLDER", "SHARDS"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed/sft.md"))
    arguments = parser.parse_args()
    if arguments.take:
        return take_steps(Path(arguments.take[0]), int(arguments.take[1]), arguments.steps)
    params = load_params(RECIPE).model
    assert isinstance(params, TinyModelParams)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        save_model(*build_tiny(params, [" ".join(WORDS)], (), 0), Path(folder) / "model")
        for turn in range(arguments.rounds):
            for number, (name, variant) in enumerate(VARIANTS.items()):
                found[name].append(seconds(variant, arguments.steps, Path(folder) / f"{turn}-{number}"))
    lines = table(found, arguments.rounds, arguments.steps)
    keep(lines, arguments.out)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
