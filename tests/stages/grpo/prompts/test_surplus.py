"""Dynamic sampling by the live share: how many prompts a round draws, and what becomes of live
groups that it does not need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from pydantic import ValidationError

from stages.domain.core.records import Score
from stages.domain.rl.rollouts import Rollout
from stages.grpo.losses import OLD
from stages.grpo.prompts.resampling import PromptPool
from stages.grpo.prompts.surplus import SpareGroup, Surplus, group_of, with_present_policy
from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.models.processor import encode_prompts
from stages.params import Oversampling
from tests.support.training.tiny import Paying, grpo_row, tiny
from tests.support.training.video_trainer import VIDEOS, config, gradients, plain_logps, prompt_of


def rule(**changes: Any) -> Oversampling:
    return Oversampling.model_validate({"live_decay": 0.9, "least_live": 0.25, "max_lag": 1, **changes})


def test_a_round_draws_what_the_live_share_asks_for() -> None:
    surplus = Surplus(rule())
    assert [surplus.prompts_for(missing) for missing in (0, 1, 5)] == [0, 1, 5], "one each before anything is known"
    surplus.estimate.add(5, 11)
    assert surplus.estimate.share == 0.5
    assert [surplus.prompts_for(missing) for missing in (0, 1, 5)] == [0, 2, 10]
    surplus.estimate.add(0, 1000)
    assert surplus.prompts_for(5) == 20, "least_live bounds it"


def test_old_groups_are_dropped() -> None:
    surplus = Surplus(rule(max_lag=2))
    surplus.spare = [SpareGroup(step, "a", {}) for step in (3, 4, 5)]
    assert [group.sampled_at for group in surplus.usable(6)] == [4, 5]
    assert [group.sampled_at for group in surplus.spare] == [4, 5]


def batch() -> dict[str, Any]:
    return {
        "prompt_ids": torch.tensor([[9, 1], [9, 1], [2, 3], [2, 3]]),
        "prompt_mask": torch.tensor([[0, 1], [0, 1], [1, 1], [1, 1]]),
        "completion_ids": torch.tensor([[5, 6, 9], [5, 9, 9], [5, 6, 7], [5, 6, 7]]),
        "completion_mask": torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]]),
        "advantages": torch.tensor([1.0, -1.0, 0.5, -0.5]),
        OLD: torch.tensor([[-1.0, -2.0, 0.0], [-3.0, 0.0, 0.0], [-1.0] * 3, [-1.0] * 3]),
        "num_items_in_batch": torch.tensor(9),
        "tasks": ["mcqa", "mcqa", "caption", "caption"],
        "videos": ["x", "x", "y", "y"],
        "rollouts": [
            Rollout(
                score=Score(sample_id=i, task="mcqa", reply="r", format_ok=True, value=1.0),
                paid={"task": 1.0},
                advantage=0.5,
            )
            for i in "aabb"
        ],
    }


def test_a_group_leaves_the_padding_of_others_behind() -> None:
    own = group_of(batch(), 0, 2)
    assert own["prompt_ids"].tolist() == [[1], [1]]
    assert own["completion_ids"].tolist() == [[5, 6], [5, 9]]
    assert own[OLD].tolist() == [[-1.0, -2.0], [-3.0, 0.0]]
    assert own["advantages"].tolist() == [1.0, -1.0]
    assert own["tasks"] == ["mcqa", "mcqa"]
    assert "num_items_in_batch" not in own
    assert group_of(batch(), 1, 2)["prompt_ids"].tolist() == [[2, 3], [2, 3]]


def test_saved_groups_come_back_with_their_videos_made_again(tmp_path: Path) -> None:
    surplus = Surplus(rule())
    surplus.estimate.add(2, 5)
    spare = [[SpareGroup(3, "a", group_of(batch(), 0, 2))], [SpareGroup(4, "b", group_of(batch(), 1, 2))]]
    surplus.save(tmp_path / "surplus.safetensors", spare)
    for process, processes, expected in ((0, 2, ["a"]), (1, 2, ["b"]), (0, 1, ["a", "b"])):
        other = Surplus(rule())
        other.load(tmp_path / "surplus.safetensors", process, processes, lambda key: f"video of {key}", "cpu")
        assert [group.key for group in other.spare] == expected
        assert other.estimate.share == surplus.estimate.share
        for group in other.spare:
            (saved,) = (one for side in spare for one in side if one.key == group.key)
            assert group.sampled_at == saved.sampled_at
            assert group.batch.keys() == saved.batch.keys()
            assert group.batch["videos"] == [f"video of {group.key}"] * 2
            for name, value in saved.batch.items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(group.batch[name], value)
                elif name != "videos":
                    assert group.batch[name] == value
    surplus.save(tmp_path / "empty.safetensors", [[], []])
    other.load(tmp_path / "empty.safetensors", 0, 1, str, "cpu")
    assert other.spare == []
    with pytest.raises(FileNotFoundError):
        other.load(tmp_path / "missing.safetensors", 0, 1, str, "cpu")


def test_unknown_log_probabilities_are_the_present_policy_s() -> None:
    logps = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    inputs = {OLD: torch.tensor([[torch.nan, -5.0]])}
    with_present_policy(inputs, logps)
    assert inputs[OLD].tolist() == [[-1.0, -5.0]]
    assert not inputs[OLD].requires_grad
    with_present_policy({}, logps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resample_rounds": 0, "oversample": rule()}, "oversample: resample_rounds 0 draws no further prompts"),
        (
            {"resample_rounds": 1, "iterations": 4, "oversample": rule(max_lag=3)},
            "oversample.max_lag: 3 steps, but the next generation is 4 steps later",
        ),
        (
            {"tasks": {"mcqa": 1, "caption": 0}, "sampler": {"live_decay": 0.9, "least_live": 0.1}},
            "sampler: keeps the ratio between tasks, but this row trains mcqa alone; write mixture",
        ),
    ],
)
def test_keys_that_nothing_could_use_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        grpo_row(**changes)


def test_kept_groups_have_ratios_that_clipping_sees() -> None:
    with pytest.raises(ValidationError, match=r"epsilon_high: 0.28 beside epsilon 0.2 has no effect"):
        grpo_row(resample_rounds=1, oversample=rule(max_lag=0), epsilon_high=0.28)
    assert grpo_row(resample_rounds=1, oversample=rule(), epsilon_high=0.28)


def trainer_of(tmp_path: Path, asked: list[str], **changes: Any) -> VideoGRPOTrainer:
    model, processor = tiny("qwen2_5_vl")
    encoded = dict(zip(VIDEOS, encode_prompts(processor, [("What?", VIDEOS[key]) for key in VIDEOS]), strict=True))

    def reward(prompts: Sequence[str], _: Any) -> list[float]:
        # Prompts a and b are paid alike whatever is replied.
        asked.extend(prompts[::2])
        return [0.5 if prompt in "ab" else float(n % 2) for n, prompt in enumerate(prompts)]

    trainer = VideoGRPOTrainer(
        encode=lambda keys: [encoded[key] for key in keys],
        pool=PromptPool(["c", "d", "d", "c"], 1),
        surplus=Surplus(rule(**changes)),
        model=model,
        rewards=Paying(reward),
        args=config(tmp_path, beta=0.0, num_iterations=1, loss_type="dapo", gradient_accumulation_steps=1),
        train_dataset=datasets.Dataset.from_dict({"prompt": list(VIDEOS)}),
        processing_class=processor,
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def rows_of(*keys: str) -> list[dict[str, str]]:
    return [{"prompt": key} for key in keys for _ in range(2)]


def test_a_kept_group_is_trained_on_with_the_ratio_to_the_policy_that_sampled_it(tmp_path: Path) -> None:
    asked: list[str] = []
    trainer = trainer_of(tmp_path, asked)
    (surplus,) = [trainer._surplus]
    assert surplus is not None
    trainer._generate_and_score_completions(rows_of("a", "c"))
    # Of two groups one is live: (1 + 1) / (2 + 1). So 2 prompts for 1 missing group; c is used, d
    # is kept.
    assert asked == ["a", "c", "c", "d"]
    assert [group.key for group in surplus.spare] == ["d"]
    assert trainer._metrics["train"]["surplus/kept"] == [1.0]
    assert surplus.estimate.share == (3 + 1) / (4 + 1)

    with torch.no_grad():  # a step
        torch.manual_seed(0)
        for weight in trainer.model.parameters():
            weight.add_(torch.randn_like(weight) * 0.01)
    before = surplus.spare[0].batch[OLD].clone()
    trainer.state.global_step = 1
    asked.clear()
    output = trainer._generate_and_score_completions(rows_of("c", "b"))
    assert asked == ["c", "b"], "the kept group takes the dead one's place, and no round is needed"
    assert surplus.spare == []
    assert (trainer._metrics["train"]["surplus/used"], trainer._metrics["train"]["surplus/lag"]) == ([0.0, 1.0], [1.0])
    (d,) = encode_prompts(trainer.processing_class, [("What?", VIDEOS["d"])])
    assert prompt_of(output, 2) == prompt_of(output, 3) == d.ids
    assert output[OLD][:2].isnan().all(), "of the policy that it is now"
    assert int(output["num_items_in_batch"]) == int(output["completion_mask"].sum())

    found = gradients(trainer, dict(output))
    trainer.model.zero_grad()
    loss, items = torch.tensor(0.0), float(output["num_items_in_batch"])
    ratios: list[float] = []
    for row in range(4):
        length = int(output["completion_mask"][row].sum())
        completion = output["completion_ids"][row, :length].tolist()
        videos = output["videos"][row]
        now = plain_logps(trainer.model, trainer.processing_class, prompt_of(output, row), completion, videos)
        old = now.detach() if row < 2 else before[row - 2, :length]
        ratio, advantage = (now - old).exp(), output["advantages"][row]
        ratios += ratio.tolist()
        loss = loss - torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum() / items
    loss.backward()
    assert max(abs(ratio - 1) for ratio in ratios) > 0.01, "the policy has moved"
    expected = {name: weight.grad for name, weight in trainer.model.named_parameters() if weight.grad is not None}
    assert found.keys() == expected.keys()
    assert max(float((found[name] - expected[name]).abs().max()) for name in found) < 1e-5


def test_nothing_is_kept_without_a_lag(tmp_path: Path) -> None:
    asked: list[str] = []
    trainer = trainer_of(tmp_path, asked, max_lag=0)
    output = trainer._generate_and_score_completions(rows_of("a", "c"))
    assert asked == ["a", "c", "c", "d"]
    assert trainer._surplus is not None
    assert trainer._surplus.spare == []
    assert OLD not in output
    assert output["advantages"].all()
