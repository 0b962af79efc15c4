"""Run by a test as several processes: trains SFT and then GRPO (`frozen`: without the vision
tower), and tells what trained."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from stages.grpo.train import train_grpo
from stages.lib.inference import vision_cache
from stages.runtime.ranks.distributed import launch
from stages.sft.train import train_sft
from tests.support.training.tiny import (
    Paying,
    Seen,
    examples_of_colours,
    grpo_row,
    length_reward,
    rollout_log,
    sft_row,
    tasks_of,
)


def missing_on_the_first_process(_: Any, replies: Sequence[str]) -> list[float | None]:
    """One reply of a step has no reward, on one process only."""
    values: list[float | None] = [*length_reward(_, replies)]
    return [None, *values[1:]] if os.environ.get("RANK", "0") == "0" else values


def main(home: Path, steps: int, lora: dict[str, Any] | None, frozen: bool) -> int:
    if (status := launch("tests.support.training.two_ranks", sys.argv[1:])) is not None:
        return status
    examples = examples_of_colours(12)
    told = {}
    masks: list[tuple[int, int]] = []
    seen = Seen()
    reports: dict[str, Any] = {"seed": 1, "hooks": seen.hooks}
    sft = sft_row(steps=steps, samples_per_step=4, lora=lora)
    told["sft"] = train_sft(
        home / "base", examples, sft, stage="sft@s", out=home / "sft/out", scratch=home / "sft/scratch", **reports
    )
    # The verbs train once a process; here one start of two processes has to do for both.
    AcceleratorState._reset_state()
    # Three prompts on two processes: one has to see a video again where the other has just seen its
    # own, and memory holds one.
    prompts = 3 if frozen else 2
    vision_cache.FEATURE_BYTES = 1
    grpo = grpo_row(
        steps=steps,
        prompts_per_step=prompts,
        rollouts=4,
        completions_per_device=2,
        freeze=["vision"] if frozen else [],
        lora=lora,
        beta=0.0 if lora is None else 0.05,  # adapters taken out are the reference, on each process
    )
    told["grpo"] = train_grpo(
        home / "sft/out/final",
        examples,
        grpo,
        stage="grpo@g",
        rewards=Paying(
            missing_on_the_first_process,
            on_masked=lambda masked, rollouts: masks.append((masked, rollouts)),
            well_formed=lambda _: True,
            tasks=tasks_of(examples),
        ),
        rollout_log=rollout_log(examples, grpo, home / "grpo/scratch"),
        out=home / "grpo/out",
        scratch=home / "grpo/scratch",
        **reports,
    )
    assert masks == [(1, 4 * prompts)] * steps, "every process is told of all"
    if seen.saved:  # the first process
        told["saved"] = seen.saved
        told["metrics"] = [values for _, values in seen.metrics]
        (home / "told.json").write_text(json.dumps(told))
    return 0


if __name__ == "__main__":
    how = sys.argv[3:]
    adapters = json.loads(how[0]) if how and how != ["frozen"] else None
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), adapters, how == ["frozen"]))
