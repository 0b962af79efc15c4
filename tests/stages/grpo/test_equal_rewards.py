"""Rollouts with equal rewards: no weight moves, the log reports it, and dynamic sampling replaces
them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.grpo.train import train_grpo
from stages.lib.training.mixture import Example
from tests.support.training.tiny import Paying, Reward, Seen, grpo_row, tasks_of


def paid(value: float | None) -> Reward:
    return lambda _, replies: [value] * len(replies)


def train(
    folder: Path,
    examples: list[Example],
    home: Path,
    seen: Seen,
    objectives: dict[str, Reward],
    *,
    rewards: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    return train_grpo(
        folder,
        examples,
        grpo_row(**changes),
        stage="grpo@alike",
        rewards=Paying(objectives, tasks=tasks_of(examples), **rewards or {}),
        seed=1,
        out=home / "out",
        scratch=home / "scratch",
        hooks=seen.hooks,
    )


@pytest.mark.parametrize(
    ("objectives", "changes"),
    [
        ({"task": (1.0, 0.7)}, {}),
        ({"task": (1.0, 0.7)}, {"loss": "grpo", "rollouts": 10, "completions_per_device": 20}),
        # Right, and paid for its length or for the order of frames beside it.
        ({"task": (1.0, 1.0), "length": (0.2, 1.0)}, {"scale_rewards": "batch", "loss": "grpo"}),
        ({"task": (1.0, 1.0), "length": (0.3, 1.0)}, {"scale_rewards": "none", "loss": "dr_grpo"}),
        ({"task": (1.0, 1.3)}, {"scale_rewards": {"task_decay": 0.9}, "loss": "bnpo"}),
        (
            {"format": (1.0, 1.0), "answer": (1.0, 0.7), "keywords": (0.4, 0.3)},
            {"aggregation": "normalise", "loss": "grpo"},
        ),
    ],
    ids=["group", "group-mean-a-reply", "batch", "none", "task", "parts"],
)
def test_no_weight_moves(
    folder: Path,
    examples: list[Example],
    tmp_path: Path,
    seen: Seen,
    objectives: dict[str, tuple[float, float]],
    changes: dict[str, Any],
) -> None:
    parts = {name: paid(value) for name, (_, value) in objectives.items()}
    weights = {name: weight for name, (weight, _) in objectives.items()}
    row = {"rollouts": 8, "completions_per_device": 16, "prompts_per_step": 2, **changes}
    train(folder, examples, tmp_path, seen, parts, rewards={"weights": weights}, **row)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out/final/model.safetensors")
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert [values["frac_reward_zero_std"] for _, values in seen.metrics] == [1.0] * 6
    assert [values["grad_norm"] for _, values in seen.metrics] == [0.0] * 6


@pytest.mark.parametrize("scale", ["group", "none", "batch"])
def test_dynamic_sampling_replaces_them(
    folder: Path, examples: list[Example], tmp_path: Path, seen: Seen, scale: str
) -> None:
    asked: list[list[str]] = []

    def reward(keys: Sequence[str], replies: Sequence[str]) -> list[float | None]:
        asked.append(list(keys[::8]))
        numbers = [int(key.removeprefix("s")) for key in keys]
        # Of the prompts with an even number all replies are paid 1.3, of the others by their place
        # in the group.
        return [1.3 if number % 2 == 0 else (place % 8) / 7 for place, number in enumerate(numbers)]

    train(
        folder,
        examples,
        tmp_path,
        seen,
        {"task": reward},
        steps=2,
        rollouts=8,
        prompts_per_step=4,
        completions_per_device=32,
        resample_rounds=4,
        scale_rewards=scale,
        loss="grpo",
    )
    dead_of_call = [(len(keys), sum(int(key.removeprefix("s")) % 2 == 0 for key in keys)) for keys in asked]
    for _, values in seen.metrics:
        prompts, dead = dead_of_call.pop(0)
        assert (prompts, dead > 0) == (4, True)
        fractions, replaced = [dead / prompts], 0
        for _ in range(4):
            if dead:
                prompts, useless = dead_of_call.pop(0)
                assert prompts == dead, "as many prompts are asked as were dead"
                replaced, dead = replaced + prompts - useless, useless
                fractions.append(useless / prompts)
        assert values["resampled_groups"] == replaced > 0
        assert values["frac_reward_zero_std"] == pytest.approx(sum(fractions) / len(fractions))
    assert dead_of_call == []


def test_the_gauge_is_of_all_that_a_group_is_paid(
    folder: Path, examples: list[Example], tmp_path: Path, seen: Seen
) -> None:
    """All right, and told apart by their length: such groups teach, whatever the task's reward
    alone looks like."""

    def by_place(_: Sequence[str], replies: Sequence[str]) -> list[float | None]:
        return [float(place % 8 < 4) for place in range(len(replies))]

    parts = {"task": paid(1.0), "length": by_place}
    rewards = {"weights": {"task": 1.0, "length": 0.2}, "gauges": lambda *_: {"zero_variance_groups": 1.0}}
    row: dict[str, Any] = {"steps": 2, "rollouts": 8, "prompts_per_step": 2, "completions_per_device": 16}
    train(folder, examples, tmp_path, seen, parts, rewards=rewards, **row)
    for _, values in seen.metrics:
        assert values["gauge/zero_variance_groups"] == values["frac_reward_zero_std"] == 0.0


def test_rollouts_without_a_reward_are_a_share_of_the_step(
    folder: Path, examples: list[Example], tmp_path: Path, seen: Seen
) -> None:
    """Not of a round of dynamic sampling, which may be of a single prompt."""
    told: list[tuple[int, int]] = []

    def mostly_alike(keys: Sequence[str], replies: Sequence[str]) -> list[float | None]:
        return [None, *[0.7] * (len(replies) - 1)]

    row: dict[str, Any] = {
        "steps": 1,
        "warmup_steps": 0,
        "rollouts": 4,
        "prompts_per_step": 2,
        "completions_per_device": 8,
    }
    rewards = {"on_masked": lambda *counts: told.append(counts)}
    train(folder, examples, tmp_path, seen, {"task": mostly_alike}, rewards=rewards, resample_rounds=2, **row)
    assert told == [(1, 8), (2, 16), (3, 24)]


def test_a_reward_that_is_no_finite_number_is_named(
    folder: Path, examples: list[Example], tmp_path: Path, seen: Seen
) -> None:
    parts: dict[str, Reward] = {"task": lambda _, replies: [1.0, float("-inf"), *[0.5] * (len(replies) - 2)]}
    with pytest.raises(ValueError, match=r"task: is -inf for a reply to s\d+, .* return a finite number"):
        train(folder, examples, tmp_path, seen, parts)


def test_an_objective_has_one_value_a_reply(folder: Path, examples: list[Example], tmp_path: Path, seen: Seen) -> None:
    parts: dict[str, Reward] = {"task": paid(1.0), "length": lambda _, replies: [1.0] * (len(replies) - 1)}
    with pytest.raises(
        ValueError, match=r"length: has 15 values for 16 replies; return one each, None where there is none"
    ):
        train(folder, examples, tmp_path, seen, parts)
