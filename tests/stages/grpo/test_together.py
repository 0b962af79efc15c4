"""A row that uses everything at once: losses, guards, a mixed policy, a sampler, a surplus, gauges
by task, and a watch. A resumed training is the uninterrupted one, and what looks on changes
nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.domain.rl.rollouts import RolloutGroup
from stages.lib.rows.jsonl import read_rows
from stages.lib.training.mixture import Example
from tests.support.training.chosen import CHOSEN, MEASURED, partly_dead
from tests.support.training.tiny import Seen
from tests.support.training.trainers import Cut, Killed, grpo, history
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
    "prompts_per_step": 4,
}


def train(
    folder: Path, examples: list[Example], home: Path, seen: Seen, *, watched: bool = True, **changes: Any
) -> dict[str, Any]:
    watch = watching(examples, keep="best") if watched else None
    return grpo(folder, examples, home, seen, watch, reward=partly_dead, **ROW | changes)


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
    train(folder, examples, whole, Seen(), **MEASURED, **changes)
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

    with pytest.raises(Killed):
        train(folder, examples, resumed, Cut(), **MEASURED, **changes)
    assert train(folder, examples, resumed, Seen(), **MEASURED, **changes)["resumed_from"] == 4
    assert history(resumed) == logged
    assert (resumed / "out/rollouts.jsonl").read_bytes() == (whole / "out/rollouts.jsonl").read_bytes()

    train(folder, examples, bare, Seen(), watched=False, **changes)
    for step in (2, 4, 6):
        assert unlike(weights(whole, step), weights(resumed, step)) == []
        assert unlike(weights(whole, step), weights(bare, step)) == []
    assert unlike(weights(whole, 6), load_file(folder / "model.safetensors"))
