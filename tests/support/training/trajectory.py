"""Run by a test on one process or several: the same SFT and GRPO, from the same weights and on the
same rollouts, and resumed midway.

The first run, on one process, samples its rollouts; later ones are given those, row by row. Steps
can then be compared number by number.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from stages.grpo.train import train_grpo
from stages.grpo.trainer import VideoGRPOTrainer
from stages.params import GrpoRow
from stages.runtime.ranks.distributed import launch
from stages.sft import train as cold_start
from tests.support.training.tiny import (
    LORA,
    Paying,
    Reward,
    Seen,
    examples_of_colours,
    grpo_row,
    length_reward,
    sft_row,
    tasks_of,
)
from tests.support.training.trainers import interrupted

STEPS, SAVED_AT = 4, 2
SHARED = {"steps": STEPS, "save_steps": SAVED_AT, "schedule": "linear", "adam_beta2": 0.98}
# Two updates on a generation, so that the second ratio is not 1; a KL term, so that there is a
# reference model; scales of their own; groups of the optimiser for parts of the model.
OFF_POLICY = {
    "iterations": 2,
    "beta": 0.04,
    "scale_rewards": {"task_decay": 0.9},
    "learning_rates": {"vision": 3e-4, "merger": 2e-3},
}
UNCLIPPED = {"iterations": 2, "epsilon": None, "epsilon_high": None}
#: Losses that are compared between one process and two.
LOSSES: dict[str, dict[str, Any]] = {
    "loss-grpo": {"loss": "grpo"},
    "loss-dr_grpo": {"loss": "dr_grpo"},
    "loss-bnpo": {"loss": "bnpo"},
    "loss-cispo": {**UNCLIPPED, "loss": {"cispo_ceiling": 5.0}},
    "loss-sapo": {**UNCLIPPED, "loss": {"sapo_positive": 1.0, "sapo_negative": 2.0}},
    "loss-entropy": {"entropy": {"bonus": 0.1, "top_share": 0.3}, "iterations": 2, "delta": 1.5},
    "loss-overlong": {
        "mask_truncated": True,
        "overlong": {"weight": 1.0, "margin_tokens": 4},
        "max_prompt_tokens": 1000,
    },
    # Three prompts: the second one's group is dealt to both of two processes.
    "loss-mixed": {
        "mixed": {"gamma": 0.1},
        "max_completion_tokens": 40,
        "prompts_per_step": 3,
        "completions_per_device": 2,
    },
}


def use_rollouts(folder: Path) -> None:
    """Rollouts come from `folder`; what is not there yet is sampled by the trainer itself, on one
    process, and written there."""
    sample = VideoGRPOTrainer._generate_single_turn

    def rollouts(self: Any, prompt_ids: Sequence[Sequence[int]], *arguments: Any, **keywords: Any) -> tuple[Any, None]:
        kept = (
            folder
            / f"{Path(self.args.output_dir).parents[1].name.removesuffix('-resumed')}-{self.state.global_step}.json"
        )
        if not kept.is_file():
            assert self.accelerator.num_processes == 1
            completions, _ = sample(self, prompt_ids, *arguments, **keywords)
            kept.write_text(json.dumps([prompt_ids, completions]))
        prompts, completions = json.loads(kept.read_text())
        first = self.accelerator.process_index * len(prompt_ids)
        mine = slice(first, first + len(prompt_ids))
        assert [list(ids) for ids in prompt_ids] == prompts[mine], (
            "this process has other rows than the one process had there"
        )
        if self.state.global_step == 0:
            assert sample(self, prompt_ids, *arguments, **keywords)[0] == completions[mine], "and samples the same"
            self._sampled = None  # of this step alone; later ones are not sampled here
        return completions[mine], None

    VideoGRPOTrainer._generate_single_turn = rollouts


def alike(_: Any, replies: Sequence[str]) -> list[float | None]:
    """In single precision the mean of these is another number."""
    return [0.7] * len(replies)


def alike_by_prompt(keys: Sequence[str], replies: Sequence[str]) -> list[float | None]:
    """Of every second prompt all replies are paid alike."""
    return [1.3 if int(key[1:]) % 2 else float(len(reply)) for key, reply in zip(keys, replies, strict=True)]


def alike_here(keys: Sequence[str], _: Any, rewards: Sequence[float | None]) -> dict[str, float]:
    """What one process sees of the groups."""
    groups = [{reward for key, reward in zip(keys, rewards, strict=True) if key == one} for one in dict.fromkeys(keys)]
    return {"zero_variance_groups": sum(len(group) == 1 for group in groups) / len(groups)}


def main(home: Path, shared: Path, *names: str) -> int:
    if (status := launch("tests.support.training.trajectory", sys.argv[1:])) is not None:
        return status
    cold_start.LOGGING_STEPS = 1
    use_rollouts(shared)
    examples = examples_of_colours(12)

    def paying(reward: Reward) -> dict[str, Any]:
        return {"rewards": Paying(reward, well_formed=lambda _: True, gauges=alike_here, tasks=tasks_of(examples))}

    rewarded = paying(length_reward)

    def grpo(**changes: Any) -> GrpoRow:
        return grpo_row(**{**SHARED, "prompts_per_step": 4, "rollouts": 4, "completions_per_device": 4, **changes})

    rows = {
        "sft": partial(cold_start.train_sft, row=sft_row(**SHARED, samples_per_step=8, samples_per_device=2)),
        "grpo": partial(train_grpo, row=grpo(), **rewarded),
        "off-policy": partial(train_grpo, row=grpo(**OFF_POLICY), **rewarded),
        **{name: partial(train_grpo, row=grpo(**changes), **rewarded) for name, changes in LOSSES.items()},
        "lora": partial(
            cold_start.train_sft, row=sft_row(**SHARED, samples_per_step=8, samples_per_device=2, lora=LORA)
        ),
        "alike": partial(train_grpo, row=grpo(loss="grpo"), **paying(alike)),
        # Three prompts: the second one's rollouts are dealt to both of two processes.
        "partly-alike": partial(
            train_grpo, row=grpo(loss="grpo", prompts_per_step=3, completions_per_device=2), **paying(alike_by_prompt)
        ),
        # Five prompts: the third one's rollouts are dealt to both of two processes.
        "watched": partial(
            train_grpo,
            row=grpo(
                prompts_per_step=5,
                completions_per_device=2,
                sampler={"live_decay": 0.9, "least_live": 0.25},
                gauges_every=1,
                gradients_every=1,
            ),
            **paying(alike_by_prompt),
        ),
    }
    rows = {name: rows[name] for name in names or rows}
    first, told = os.environ.get("RANK", "0") == "0", {}
    for name, train in rows.items():
        for run in (name, f"{name}-resumed"):
            if first and run != name:
                interrupted(home / name / "scratch", home / run / "scratch", SAVED_AT)
            seen = Seen()
            AcceleratorState._reset_state()  # the verbs train once a process; here one start has to do for all
            told[run] = train(
                shared / "base",
                examples,
                stage=name,
                seed=1,
                out=home / run / "out",
                scratch=home / run / "scratch",
                hooks=seen.hooks,
            )
    if first:
        (home / "told.json").write_text(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
