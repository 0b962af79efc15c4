"""A row that uses everything at once: losses, guards, a mixed policy, a sampler, a surplus, gauges
by task, and a watch. A resumed training is the uninterrupted one, and what looks on changes
nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.domain.rl.rollouts import RolloutGroup
from stages.grpo.train import train_grpo
from stages.lib.rows.jsonl import read_rows
from stages.lib.training.loop import Hooks
from stages.lib.training.mixture import Example
from tests.support.training.chosen import CHOSEN, MEASURED, Killed, history, partly_dead
from tests.support.training.tiny import Paying, Seen, grpo_row, rollout_log, tasks_of
from tests.support.training.watched import watching

ROW: dict[str, Any] = {
    **CHOSEN,
    "loss": {"cispo_ceiling": 5.0},
    "epsilon": None,
    "epsilon_high": None,
    "entropy": {"bonus": 0.01, "top_share": 0.5},
    "overlong": {"weight": 0.5, "margin_tokens": 30},
    "mixed": {"gamma": 0.1},
    "max_completion_tokens": 40,
    "max_prompt_tokens": 1000,
    "learning_rates": {"vision": 3e-4, "merger": 2e-3},
    "steps": 6,
    "save_steps": 2,
    "prompts_per_step": 2,
}


def train(
    folder: Path, examples: Sequence[Example], home: Path, hooks: Hooks, *, watched: bool = True, **changes: Any
) -> dict[str, Any]:
    row = grpo_row(**ROW | changes)
    return train_grpo(
        folder,
        examples,
        row,
        stage="grpo@bridge",
        seed=1,
        rewards=Paying(partly_dead, tasks=tasks_of(examples)),
        rollout_log=rollout_log(examples, row, home / "scratch"),
        out=home / "out",
        scratch=home / "scratch",
        hooks=hooks,
        watch=watching(examples, keep="best") if watched else None,
    )


def weights(home: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights of a step, wherever a training that keeps the best checkpoint put them."""
    own = home / f"out/checkpoint-{step}/model.safetensors"
    return load_file(own if own.is_file() else home / "out/final/model.safetensors")


def unlike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"mask_truncated": True, "iterations": 2}], ids=["mixed", "truncated"])
def test_all_keys_work_together(folder: Path, examples: list[Example], tmp_path: Path, changes: dict[str, Any]) -> None:
    whole, resumed, bare = tmp_path / "whole", tmp_path / "resumed", tmp_path / "bare"
    train(folder, examples, whole, Seen().hooks, **MEASURED, **changes)
    logged = history(whole)
    steps = [row for row in logged if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in steps)
    assert [row["step"] for row in logged if "watch/greedy" in row] == [0, 2, 4, 6]
    names = {name for row in logged for name in row}
    assert {"dead_groups/mcqa", "logp_gap/caption", "surplus/kept", "prompt_share/mcqa"} <= names
    assert any(name.startswith("gradient_cosine/") for name in names)
    assert any(name.startswith("reward/written/") for name in names)
    # Of rollouts alone: a written reply was sampled with no probability.
    assert max(row.get("logp_gap_max/mcqa", 0.0) for row in logged) < 0.05
    groups = read_rows(whole / "out/rollouts.jsonl", RolloutGroup)
    assert {group.rollouts[0].written for group in groups} == {True}

    def killed(step: int, _: dict[str, float]) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        train(folder, examples, resumed, Hooks(killed, Seen().on_checkpoint), **MEASURED, **changes)
    assert train(folder, examples, resumed, Seen().hooks, **MEASURED, **changes)["resumed_from"] == 4
    assert history(resumed) == logged
    assert (resumed / "out/rollouts.jsonl").read_bytes() == (whole / "out/rollouts.jsonl").read_bytes()

    train(folder, examples, bare, Seen().hooks, watched=False, **changes)
    for step in (2, 4, 6):
        assert unlike(weights(whole, step), weights(resumed, step)) == []
        assert unlike(weights(whole, step), weights(bare, step)) == []
    assert unlike(weights(whole, 6), load_file(folder / "model.safetensors"))
