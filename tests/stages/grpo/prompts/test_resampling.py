"""Dynamic sampling: dead groups are replaced by live ones, and the replaced batch is as good as one
generated whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from stages.grpo.prompts.resampling import PromptPool, dead_groups, replace_groups
from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.models.load import save_model
from stages.lib.models.processor import encode_prompts
from tests.support.training.tiny import Paying, tiny
from tests.support.training.video_trainer import TOLERANCE, VIDEOS, config, prepared, worst_errors


def test_dead_groups_are_those_without_any_advantage() -> None:
    assert dead_groups(torch.tensor([0.0, 0.0, 1.0, -1.0, 0.0, 0.0]), 2) == [0, 2]


def test_rows_are_replaced_and_padded_on_their_own_side() -> None:
    batch = {
        "prompt_ids": torch.tensor([[9, 1], [9, 1], [2, 3], [2, 3]]),
        "completion_ids": torch.tensor([[5, 6, 7]] * 4),
        "completion_mask": torch.ones(4, 3, dtype=torch.long),
        "advantages": torch.tensor([0.0, 0.0, 1.0, -1.0]),
        "num_items_in_batch": torch.tensor(12),
        "videos": ["a", "a", "b", "b"],
    }
    fresh = {
        "prompt_ids": torch.tensor([[4, 4, 4]] * 4),
        "completion_ids": torch.tensor([[8]] * 4),
        "completion_mask": torch.ones(4, 1, dtype=torch.long),
        "advantages": torch.tensor([0.0, 0.0, 2.0, -2.0]),
        "num_items_in_batch": torch.tensor(4),
        "videos": ["c", "c", "d", "d"],
    }
    merged = replace_groups(batch, fresh, [(0, 1)], rollouts=2, pad_id=9)
    assert merged["prompt_ids"].tolist() == [[4, 4, 4], [4, 4, 4], [9, 2, 3], [9, 2, 3]]
    assert merged["completion_ids"].tolist() == [[8, 9, 9], [8, 9, 9], [5, 6, 7], [5, 6, 7]]
    assert merged["completion_mask"].tolist() == [[1, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert merged["advantages"].tolist() == [2.0, -2.0, 1.0, -1.0]
    assert merged["videos"] == ["d", "d", "b", "b"]
    assert batch["videos"] == ["a", "a", "b", "b"], "the batch itself is left alone"


def test_processes_take_different_prompts_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    keys = list("abcdefgh")
    first, second = PromptPool(keys, 1), PromptPool(keys, 1)
    assert (first.take(2, 0, 2), second.take(2, 1, 2)) == (["a", "b"], ["c", "d"])
    first.save(tmp_path / "reserve.json")
    resumed = PromptPool(keys, 1)
    resumed.load(tmp_path / "reserve.json")
    assert resumed.take(3, 1, 2) == ["h", "a", "b"], "at its end it starts again"


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_resampled_batch_has_right_logps_and_fewer_dead_groups(tmp_path: Path, rounds: int) -> None:
    model, processor = tiny("qwen2_5_vl")
    save_model(model, processor, tmp_path / "model")
    model.config._name_or_path = str(tmp_path / "model")
    encoded = dict(zip(VIDEOS, encode_prompts(processor, [("What?", VIDEOS[key]) for key in VIDEOS]), strict=True))
    asked: list[str] = []

    def reward(prompts: Sequence[str], _: Any) -> list[float]:
        # Prompts a and b are paid alike whatever is replied; c has two videos, d another size.
        asked.extend(prompts[::2])
        return [0.5 if prompt in "ab" else float(n % 2) for n, prompt in enumerate(prompts)]

    trainer = VideoGRPOTrainer(
        encode=lambda keys: [encoded[key] for key in keys],
        pool=PromptPool(["a", "c", "b", "d"], rounds),
        model=model,
        rewards=Paying(reward),
        args=config(tmp_path),
        train_dataset=datasets.Dataset.from_dict({"prompt": list(VIDEOS)}),
        processing_class=processor,
    )
    slices = prepared(trainer)
    dead = sum(int((inputs["advantages"] == 0).sum()) for inputs in slices)
    # Each step asks for all four prompts. One round brings a and c; the next b, for what a left
    # dead; the third d.
    assert asked[4:] == ["a", "c"] + (["b", "d"] if rounds == 3 else [])
    assert dead == (2 if rounds == 1 else 0)
    videos_of = {encoded[key].ids: encoded[key].videos for key in VIDEOS}
    # Nothing has been learned yet, so that the reference policy is the policy.
    errors = worst_errors(trainer, slices, videos_of, trainer.model)
    assert max(errors.values()) < TOLERANCE, errors
    tokens = sum(int(inputs["completion_mask"].sum()) for inputs in slices)
    assert all(int(inputs["num_items_in_batch"]) == tokens for inputs in slices)
