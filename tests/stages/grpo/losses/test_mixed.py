"""Mixed policy: a written reply takes the place of a group's first rollout, and is trained by the
paper's rule."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from stages.domain.rl.rollouts import RolloutGroup
from stages.errors import InputError
from stages.grpo.losses import OLD
from stages.grpo.mixed import WRITTEN, Written
from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.models.processor import encode_prompts
from stages.lib.rows.jsonl import read_rows
from stages.lib.training.mixture import Example
from tests.support.training.tiny import Paying, Seen, tiny
from tests.support.training.trainers import grpo, interrupted
from tests.support.training.video_trainer import VIDEOS, config, gradients, plain_logps, prompt_of

GAMMA = 0.1


@pytest.mark.parametrize(
    "loss", ["dapo", *(pytest.param(loss, marks=pytest.mark.slow) for loss in ("grpo", "dr_grpo"))]
)
def test_a_written_reply_is_trained_by_the_shaped_ratio(tmp_path: Path, loss: str) -> None:
    """Against the formula on plain forward passes, beside the group's rollouts, whose terms stay
    TRL's."""
    model, processor = tiny("qwen2_5_vl")
    rewards = Paying(lambda _, replies: [1.0, 0.0, 0.3, 0.5, 0.2, 0.1, 0.7, 0.4][: len(replies)])
    trainer = VideoGRPOTrainer(
        encode=lambda keys: encode_prompts(processor, [("What?", VIDEOS[key]) for key in keys]),
        model=model,
        rewards=rewards,
        args=config(tmp_path, beta=0.0, num_iterations=1, num_generations=4, loss_type=loss),
        train_dataset=datasets.Dataset.from_dict({"prompt": list(VIDEOS)}),
        processing_class=processor,
        written=Written(GAMMA, dict.fromkeys(VIDEOS, (40, 41, 42, 43))),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    rows = next(iter(trainer.get_train_dataloader()))
    inputs: dict[str, Any] = trainer._generate_and_score_completions(rows)
    assert inputs[WRITTEN].tolist() == [True, False, False, False] * 2
    assert inputs["completion_ids"][::4, :5].tolist() == [[40, 41, 42, 43, processor.tokenizer.pad_token_id]] * 2
    assert [key for key, _ in rewards.written] == [rows[0]["prompt"], rows[4]["prompt"]]
    assert inputs["advantages"][0] > 0.5, "its reward counts in its group like any other"

    def passed(row: int) -> torch.Tensor:
        prompt, length = prompt_of(inputs, row), int(inputs["completion_mask"][row].sum())
        reply = inputs["completion_ids"][row][:length].tolist()
        return plain_logps(trainer.model, processor, prompt, reply, inputs["videos"][row])

    terms = []
    for row, advantage in enumerate(inputs["advantages"]):
        logp = passed(row)
        ratio = torch.exp(logp) / (torch.exp(logp) + GAMMA) if row % 4 == 0 else torch.exp(logp - logp.detach())
        terms.append(-advantage * ratio)
    if loss == "dapo":
        expected = torch.cat(terms).sum() / inputs["completion_mask"].sum()
    elif loss == "grpo":
        expected = torch.stack([term.mean() for term in terms]).mean() / 2
    else:
        expected = torch.cat(terms).sum() / (8 * 6) / 2
    trainer.model.zero_grad()
    expected.backward()
    formula = {n: weight.grad.clone() for n, weight in trainer.model.named_parameters() if weight.grad is not None}
    found = gradients(trainer, inputs)
    assert max(float((found[n] - formula[n]).abs().max()) for n in found) < 1e-5
    assert trainer._compute_loss(trainer.model, inputs).item() == pytest.approx(expected.item(), abs=1e-5)
    # Beside kept groups, where the policy that sampled the others is the present one.
    beside = gradients(trainer, {**inputs, OLD: torch.full(inputs["completion_ids"].shape, torch.nan)})
    assert [name for name in found if not torch.equal(found[name], beside[name])] == []


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_slope_of_the_shaped_ratio(p: float) -> None:
    def shaped(x: float) -> float:
        return x / (x + GAMMA)

    step = 1e-6
    assert (shaped(p + step) - shaped(p - step)) / (2 * step) == pytest.approx(GAMMA / (p + GAMMA) ** 2, rel=1e-4)


def train(folder: Path, examples: list[Example], home: Path, seen: Seen, **changes: Any) -> dict[str, Any]:
    mixed = {"mixed": {"gamma": GAMMA}, "max_completion_tokens": 40, "prompts_per_step": 2}
    return grpo(folder, examples, home, seen, **{**mixed, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"resample_rounds": 1, "entropy": {"bonus": 0.01, "top_share": 0.5}}], ids=str)
def test_written_replies_are_marked_and_a_resumed_run_is_equal(
    folder: Path, examples: list[Example], tmp_path: Path, seen: Seen, changes: dict[str, Any]
) -> None:
    changes = {"steps": 4, **changes}
    half = [e if i % 2 else replace(e, reply=None) for i, e in enumerate(examples)]
    told = train(folder, half, tmp_path / "whole", seen, **changes)
    assert told["prompts_with_a_written_reply"] == 12
    texts = {e.sample_id: e.reply for e in half}
    marked = 0
    for group in read_rows(tmp_path / "whole/out/rollouts.jsonl", RolloutGroup):
        assert [r.written for r in group.rollouts[1:]] == [None] * 3
        first = group.rollouts[0]
        assert first.written == (True if texts[group.sample_id] else None)
        if first.written:
            assert first.score.reply == texts[group.sample_id]
            marked += 1
    assert marked
    names = {name for _, values in seen.metrics for name in values}
    assert "reward/written/caption" in names
    assert "reward/written/mcqa" not in names, "those have no trace"

    interrupted(tmp_path / "whole/scratch", tmp_path / "cut/scratch", 2)
    assert train(folder, half, tmp_path / "cut", Seen(), **changes)["resumed_from"] == 2
    for file in ("history.jsonl", "final/model.safetensors"):
        assert (tmp_path / "cut/out" / file).read_bytes() == (tmp_path / "whole/out" / file).read_bytes()
    assert json.loads((tmp_path / "whole/out/summary.json").read_text())["prompts_with_a_written_reply"] == 12


def test_a_row_without_a_usable_trace_is_refused(
    folder: Path, examples: list[Example], tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        InputError, match=r"mixed: 24 of 24 samples have a trace, none of at most 4 tokens; have traces"
    ):
        train(folder, examples, tmp_path, seen, max_completion_tokens=4)
