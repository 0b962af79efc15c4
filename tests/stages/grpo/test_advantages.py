"""Advantages: exactly 0 for groups with equal rewards, otherwise those of TRL; moving scales of
tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from stages.grpo.advantages import TaskScales, normalised, scaled, summed
from stages.grpo.prompts.resampling import dead_groups
from tests.support.training.tiny import grpo_row

NAN = float("nan")
ONE = torch.ones(1)

#: By name, from rewards in parts [prompts, rollouts, parts] and their weights to advantages.
SCALES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "group": lambda rewards, weights: scaled(summed(rewards, weights), "group"),
    "batch": lambda rewards, weights: scaled(summed(rewards, weights), "batch"),
    "none": lambda rewards, weights: scaled(summed(rewards, weights), "none"),
    "task_decay": lambda rewards, weights: TaskScales(0.9).advantages(summed(rewards, weights), ["a"] * len(rewards)),
    "normalise": normalised,
}


def trl(rewards_PGK: torch.Tensor, weights_K: torch.Tensor, scale: str) -> torch.Tensor:
    """As TRL 1.16 does it, in single precision."""
    if scale == "normalise":
        parts = (rewards_PGK - rewards_PGK.nanmean(dim=1, keepdim=True)) / (_nanstd(rewards_PGK, 1) + 1e-4)
        total = (parts * weights_K).nansum(dim=2)
        return (total - total.mean()) / (total.std() + 1e-4)
    rewards = (rewards_PGK * weights_K).nansum(dim=2)
    spread = {"group": rewards.std(dim=1, keepdim=True) + 1e-4, "batch": rewards.std() + 1e-4, "none": 1.0}[scale]
    return (rewards - rewards.mean(dim=1, keepdim=True)) / spread


def _nanstd(values: torch.Tensor, dim: int) -> torch.Tensor:
    count = (~torch.isnan(values)).sum(dim=dim, keepdim=True)
    variance = (values - values.nanmean(dim=dim, keepdim=True)).square().nanmean(dim=dim, keepdim=True)
    return (variance * count / (count - 1)).sqrt()


@pytest.mark.parametrize("size", [2, 4, 6, 8, 10, 12, 16])
@pytest.mark.parametrize("name", SCALES)
def test_groups_paid_alike_have_no_advantage(name: str, size: int) -> None:
    """A hundred such groups, each beside one that differs, and alone; with rewards that are
    missing; and in parts."""
    values = torch.arange(1, 101) / 100
    residue = 0
    for value in [*values.tolist(), 1.2, 1.3, 1.7]:
        alike = torch.full((1, size, 1), value)
        live = torch.linspace(0, 1, size).view(1, size, 1)
        missing = alike.clone()
        missing[0, 0] = NAN
        # 1 - value + value, and value, are one reward up to rounding.
        parts = torch.tensor([[[1 - value, value], [value, 1 - value]] * (size // 2)])
        for batch, weights in (
            (torch.cat([alike, live]), ONE),
            (torch.cat([alike, alike]), ONE),
            (torch.cat([missing, live]), ONE),
            (torch.cat([alike, live]) * torch.tensor([1.0, 0.3]), torch.tensor([1.0, 0.3])),
        ):
            advantages = SCALES[name](batch, weights)
            dead = [0, 1] if torch.equal(batch[0], batch[1]) else [0]
            assert dead_groups(advantages.flatten().float(), size) == dead, (value, advantages)
            if dead == [0]:
                assert abs(float(advantages[1].sum())) < 1e-9
        if name != "task_decay" and trl(torch.cat([alike, live]), ONE, name)[0].any():
            residue += 1
        cancelling = SCALES[name](torch.cat([parts, live * torch.tensor([1.0, 0.0])]), torch.ones(2))
        assert dead_groups(cancelling.flatten().float(), size) == [0], (value, cancelling)
    if name != "task_decay" and size >= 6:
        assert residue > 10, "single precision leaves something of many of them"


@pytest.mark.parametrize("name", [name for name in SCALES if name != "task_decay"])
def test_live_groups_have_the_advantages_of_trl(name: str) -> None:
    rewards = torch.rand(6, 8, 3, generator=torch.Generator().manual_seed(3))
    weights = torch.tensor([1.0, 0.5, 0.2])
    # Another task's part, and a part that pays one group alike.
    rewards[3:, :, 1] = NAN
    rewards[2, :, 0] = 0.5
    assert torch.allclose(SCALES[name](rewards, weights), trl(rewards, weights, name).double(), atol=2e-5)


def test_a_part_that_pays_alike_moves_nothing_in_a_live_group() -> None:
    live = torch.rand(4, 8, 1, generator=torch.Generator().manual_seed(3))
    beside = torch.cat([live, torch.full((4, 8, 1), 0.7)], dim=2)
    assert torch.equal(normalised(beside, torch.ones(2)), normalised(live, ONE))


@pytest.mark.parametrize("name", SCALES)
def test_a_group_of_one_known_reward_or_none_has_no_advantage(name: str) -> None:
    rewards = torch.tensor([[0.7, NAN, NAN, NAN], [NAN] * 4, [0.2, NAN, 0.7, 0.2]]).unsqueeze(2)
    advantages = SCALES[name](rewards, ONE)
    assert dead_groups(advantages.flatten(), 4) == [0, 1]
    assert advantages[2, 1] == 0
    assert torch.isfinite(advantages).all()
    assert not SCALES[name](torch.full((2, 4, 1), NAN), ONE).any()


def test_groups_paid_alike_leave_a_spread_of_zero() -> None:
    scales = TaskScales(decay=0.9)
    for _ in range(3):
        scales.advantages(torch.full((4, 8), 0.7), ["mcqa"] * 4)
    assert scales.spread("mcqa") == 0.0


def test_one_update_divides_by_the_spread_of_the_task() -> None:
    rewards = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.50, 0.52], [0.60, 0.64]])
    scales = TaskScales(decay=0.9)
    advantages = scales.advantages(rewards, ["mcqa", "mcqa", "caption", "caption"])
    # Unbiased variances within the groups: 0.5 and 0; 0.0002 and 0.0008.
    assert scales.spread("mcqa") == pytest.approx(0.5)
    assert scales.spread("caption") == pytest.approx(0.0005**0.5, rel=1e-4)
    assert advantages[0].tolist() == pytest.approx([-0.5 / 0.5001, 0.5 / 0.5001], rel=1e-4)
    assert advantages[1].tolist() == [0.0, 0.0]
    # A group that differs twice as much moves the policy twice as much: by its own spread both
    # would count alike.
    assert (advantages[3] / advantages[2]).tolist() == pytest.approx([2.0, 2.0], rel=1e-4)


def test_the_scale_moves_and_is_corrected_for_its_start() -> None:
    scales = TaskScales(decay=0.8)
    scales.advantages(torch.tensor([[0.0, 1.0]]), ["mcqa"])
    scales.advantages(torch.tensor([[0.0, 0.2]]), ["mcqa"])
    expected = (0.8 * 0.2 * 0.5 + 0.2 * 0.02) / (1 - 0.8**2)
    assert scales.spread("mcqa") == pytest.approx(expected**0.5)
    assert scales.spread("caption") == 0.0


def test_unscored_replies_are_in_no_mean_and_move_nothing() -> None:
    scales = TaskScales(decay=0.9)
    advantages = scales.advantages(torch.tensor([[1.0, 0.0, NAN], [NAN, NAN, NAN], [0.5, NAN, NAN]]), ["a", "a", "a"])
    assert scales.spread("a") == pytest.approx(0.5**0.5)
    assert advantages[0].tolist() == pytest.approx([0.5 / 0.7072, -0.5 / 0.7072, 0.0], rel=1e-3)
    assert not advantages[1:].any()
    assert TaskScales(0.9).advantages(torch.full((2, 2), NAN), ["a", "b"]).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_saved_scale_comes_back(tmp_path: Path) -> None:
    scales, other = TaskScales(0.9), TaskScales(0.9)
    scales.advantages(torch.rand(6, 4, generator=torch.Generator().manual_seed(1)), ["a", "b"] * 3)
    scales.save(tmp_path / "scales.json")
    other.load(tmp_path / "scales.json")
    more = torch.rand(2, 4, generator=torch.Generator().manual_seed(2))
    assert torch.equal(scales.advantages(more, ["a", "b"]), other.advantages(more, ["a", "b"]))


def test_a_ratio_a_reply_needs_a_loss_a_reply() -> None:
    with pytest.raises(ValidationError, match="importance: 'sequence' needs loss 'grpo', found 'dapo'"):
        grpo_row(importance="sequence")
    assert grpo_row(importance="sequence", loss="grpo", iterations=2).importance == "sequence"
