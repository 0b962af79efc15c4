"""Moving scales of tasks: what they are, what they leave out, and that they come back from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tiny_parts import grpo_row

from stages.learning.advantages import TaskScales

NAN = float("nan")


def test_one_update_divides_by_the_spread_of_the_task() -> None:
    rewards = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.50, 0.52], [0.60, 0.64]])
    scales = TaskScales(decay=0.9)
    advantages = scales.advantages(rewards, ["mcqa", "mcqa", "caption", "caption"])
    # Unbiased variances within the groups: 0.5 and 0; 0.0002 and 0.0008.
    assert scales.spread("mcqa") == pytest.approx(0.5)
    assert scales.spread("caption") == pytest.approx(0.0005**0.5, rel=1e-4)
    assert advantages[0].tolist() == pytest.approx([-0.5 / 0.5001, 0.5 / 0.5001], rel=1e-4)
    assert advantages[1].tolist() == [0.0, 0.0]
    # A group that differs twice as much moves the policy twice as much: by its own spread both would count alike.
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
    assert grpo_row(importance="sequence", loss="grpo").importance == "sequence"
