"""Cost of a GRPO step on video, against plain TRL, as ratios within one run: ``make bench-grpo``.

Trainers take the same number of prompts, rollouts and tokens on the tiny model: TRL's own, which
generates with the video and computes its loss *without* it; ours with nothing saved, so that each
rollout's video goes through the tower and each reply has its prompt to itself; ours; ours with the
tower frozen; and ours with the gauges by task, and the cosines between gradients, at every step.
CPU seconds of a step count, their median over the steps after the first two. The same of the first
and the third at a prompt of more than 1,000 tokens.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.grpo.judge import judging
from benchmarks.grpo.subject import Shape
from benchmarks.grpo.trainers import Seen, ours, plain_trl
from benchmarks.machine import keep
from stages.lib.models.load import use_threads
from stages.runtime.machine import measured

SHORT = Shape()
#: 1,057 tokens of prompt.
LONG = Shape(prompts=2, tokens=48, frames=32, size=256)

Trainer = Callable[[Path, Shape, int, int], Seen]
PLAIN, OURS = "plain TRL (its loss does not see the video)", "ours"
TRAINERS: dict[str, Trainer] = {
    PLAIN: plain_trl,
    "ours, nothing saved": partial(ours, saving=False),
    OURS: ours,
    "ours, vision tower frozen": partial(ours, frozen=True),
    "ours, gauges by task at every step": partial(ours, gauges_every=1),
    "ours, gradients by task at every step": partial(ours, gradients_every=1),
}


def table(shape: Shape, names: list[str], steps: int) -> list[str]:
    """Measure these trainers, the first of which is what the others are divided by."""
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            # Half of the prompts are new in a step of the first epoch, and all have been seen in
            # the later ones.
            found[name] = TRAINERS[name](Path(folder), shape, steps, 2 * shape.prompts)
    lines = [
        f"{shape}, {steps} steps of the model of recipe `tiny`. All prompts have been seen after two steps.",
        "",
        "| trainer | CPU s a step | against plain TRL | videos through the tower a prompt: rollouts | loss"
        " | waiting for video after the first epoch |",
        "|---|---|---|---|---|---|",
    ]
    prompts = shape.prompts * steps
    for name, seen in found.items():
        waiting = "" if name == PLAIN else f"{100 * sum(seen.waited[2:]) / sum(seen.steps[2:]):.1f}%"
        lines.append(
            f"| {name} | {seen.step:.2f} | {seen.step / found[PLAIN].step:.2f}"
            f" | {seen.videos['rollouts'] / prompts:.2f}"
            f" | {seen.videos['loss'] / prompts:.2f} | {waiting} |"
        )
    return [*lines, ""]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grpo", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=10, help="optimiser steps of each trainer (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed/grpo.md"))
    arguments = parser.parse_args()
    use_threads()
    # TRL 1.16 asks transformers 5.23 by a name that has a successor.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    lines = [measured("torch", "transformers", "trl"), ""]
    lines += table(SHORT, list(TRAINERS), arguments.steps)
    lines += table(LONG, [PLAIN, OURS], arguments.steps)
    seconds, scored = judging(64)
    lines.append(
        f"64 verdicts from a judge that takes 1 s for each: {seconds:.1f} s ({scored} scored; one by one: 64 s)."
    )
    keep(lines, arguments.out)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
