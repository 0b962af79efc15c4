"""Both trainers learn, report during training, and reach the same result after being killed
half-way."""

from __future__ import annotations

import json
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from stages.domain.core.records import Checkpoint
from stages.domain.rl.rollouts import RolloutGroup
from stages.lib.rows.jsonl import read_rows
from stages.lib.training.checkpoints import CheckpointGone
from stages.lib.training.mixture import Example, draw
from tests.support.training.tiny import LORA, Seen
from tests.support.training.trainers import Killed, grpo, interrupted, sft


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_sft_learns(folder: Path, examples: list[Example], tmp_path: Path, seen: Seen) -> None:
    summary = sft(folder, examples, tmp_path, seen, steps=60, save_steps=30)
    assert summary["tasks"] == {"caption": 160, "mcqa": 320}
    losses = [values["loss"] for _, values in seen.metrics if "loss" in values]
    assert losses[-1] < losses[0] / 3
    assert seen.saved == [("checkpoint-30", False), ("final", True)]
    before, after = weights(folder), weights(tmp_path / "out/final")
    assert before.keys() == after.keys()
    unmoved = [name for name in before if torch.equal(before[name], after[name])]
    assert unmoved == [], "every weight has its share in the loss, the vision tower included"
    records = [Checkpoint.model_validate(row) for row in rows(tmp_path / "out/checkpoints.jsonl")]
    assert [(record.path, record.step, record.final) for record in records] == [
        ("checkpoint-30", 30, False),
        ("final", 60, True),
    ]
    assert records[-1].metrics["loss"] == losses[-1]
    assert [row["step"] for row in rows(tmp_path / "out/history.jsonl")] == [10, 20, 30, 40, 50, 60]
    assert json.loads((tmp_path / "out/summary.json").read_text())["steps"] == 60
    AutoModelForImageTextToText.from_pretrained(tmp_path / "out/checkpoint-30")
    AutoProcessor.from_pretrained(tmp_path / "out/checkpoint-30")
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or str(tmp_path).encode() not in path.read_bytes(), f"{path} holds an absolute path"


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1e-2},
        {"iterations": 2, "beta": 0.05, "loss": "grpo", "completions_per_device": 16},
        {"loss": "grpo", "importance": "sequence", "iterations": 2, "scale_rewards": {"task_decay": 0.9}},
        {"freeze": ["vision"]},
        {"resample_rounds": 2},
    ],
)
def test_grpo_learns(
    folder: Path, examples: list[Example], tmp_path: Path, seen: Seen, changes: dict[str, Any]
) -> None:
    summary = grpo(folder, examples, tmp_path, seen, steps=8, **changes)
    assert summary["completions"] == 8 * 16 // changes.get("iterations", 1)
    logged = dict(seen.metrics)
    assert list(logged) == list(range(1, 9))
    wanted = {"loss", "learning_rate", "entropy", "clip_ratio/region_mean"}
    rollouts = {
        "reward",
        "reward/caption",
        "reward/mcqa",
        "format",
        "masked_rollouts",
        "frac_reward_zero_std",
        "completions/mean_length",
    }
    assert wanted | rollouts <= logged[1].keys()
    assert [missing for values in logged.values() if (missing := wanted - values.keys())] == []
    if "learning_rate" in changes:
        assert logged[8]["reward"] > 2 * logged[1]["reward"]
    if "scale_rewards" in changes:
        assert all(values["reward_spread/caption"] >= 0 for values in logged.values() if "reward" in values)
    before, after = weights(folder), weights(tmp_path / "out/final")
    for group in read_rows(tmp_path / "out/rollouts.jsonl", RolloutGroup):
        paid = torch.tensor([rollout.paid["task"] for rollout in group.rollouts])
        assert paid.tolist() == [len(rollout.score.reply) for rollout in group.rollouts]
        deviations = paid - paid.mean()
        advantages = torch.tensor([rollout.advantage for rollout in group.rollouts])
        if "scale_rewards" in changes:  # the scale is that of all steps so far
            assert torch.equal(advantages.sign(), deviations.sign())
        else:
            assert torch.allclose(advantages, deviations / (paid.std() + 1e-4), atol=1e-5), "those of this very group"
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert still == ([name for name in before if "visual" in name] if "freeze" in changes else [])


def scaled_grpo(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """With a state of its own that a checkpoint has to bring back."""
    return grpo(*args, scale_rewards={"task_decay": 0.8}, **kwargs)


def resampled_grpo(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Train with a prompt pool, of which some prompts have been taken."""
    return grpo(*args, resample_rounds=2, **kwargs)


def adapted_sft(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """With trained matrices that stand beside the weights in a checkpoint."""
    return sft(*args, lora=LORA | {"dropout": 0.1}, **kwargs)


def adapted_grpo(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """And the weights without them as the reference."""
    return grpo(*args, lora=LORA, beta=0.05, **kwargs)


UNCLIPPED = {"iterations": 2, "epsilon": None, "epsilon_high": None}
RATES = {"learning_rates": {"vision": 1e-4, "merger": 3e-3}, "schedule": "linear"}
#: Losses and guards, each in a row.
LOSSES = {
    "cispo": partial(grpo, **UNCLIPPED, loss={"cispo_ceiling": 5.0}),
    "sapo": partial(grpo, **UNCLIPPED, loss={"sapo_positive": 1.0, "sapo_negative": 1.05}),
    "delta": partial(grpo, iterations=2, delta=1.5),
    "entropy": partial(grpo, entropy={"bonus": 0.01, "top_share": 1.0}),
    "top-entropy": partial(grpo, entropy={"bonus": 0.0, "top_share": 0.2}, resample_rounds=1),
    "truncated": partial(grpo, mask_truncated=True, max_completion_tokens=12),
    "overlong": partial(grpo, overlong={"weight": 1.0, "margin_tokens": 4}),
    "rates": partial(grpo, **RATES),
    "rates-lora": partial(grpo, **RATES, lora=LORA | {"targets": ["q_proj", "visual.qkv", "visual.merger.mlp.0"]}),
    "rates-sft": partial(sft, **RATES),
}


@pytest.mark.parametrize(
    "train",
    [
        sft,
        grpo,
        resampled_grpo,
        *(pytest.param(train, marks=pytest.mark.slow) for train in (scaled_grpo, adapted_sft, adapted_grpo)),
        *(pytest.param(train, id=name, marks=pytest.mark.slow) for name, train in LOSSES.items()),
    ],
)
def test_resumed_equals_uninterrupted(
    train: Any, folder: Path, examples: list[Example], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, cut = Seen(), Seen()
    train(folder, examples, tmp_path / "whole", whole)

    def killed_after_the_last_save(checkpoint: Checkpoint, saved: Path) -> None:
        if checkpoint.final:
            raise Killed

    cut.on_checkpoint = killed_after_the_last_save  # type: ignore[method-assign]
    with pytest.raises(Killed):
        train(folder, examples, tmp_path / "cut", cut)
    # As if the last save had been cut short: its manifest was not written.
    states = tmp_path / "cut/scratch/state"
    (states / "checkpoint-6/manifest.json").unlink()
    assert not (tmp_path / "cut/out").exists()

    with caplog.at_level(logging.WARNING):
        summary = train(folder, examples, tmp_path / "cut", Seen())
    assert summary["resumed_from"] == 4
    assert "checkpoint-6: set aside, it was not finished" in caplog.text
    mine, theirs = weights(tmp_path / "cut/out/final"), weights(tmp_path / "whole/out/final")
    for name, tensor in mine.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-6), name
    for file in ("history.jsonl", "checkpoints.jsonl"):
        for left, right in zip(rows(tmp_path / "cut/out" / file), rows(tmp_path / "whole/out" / file), strict=True):
            assert left.keys() == right.keys()
            assert {k: v for k, v in left.items() if isinstance(v, int | float)} == pytest.approx(
                {k: v for k, v in right.items() if isinstance(v, int | float)}, rel=1e-4, abs=1e-6
            )
    if (tmp_path / "whole/out/rollouts.jsonl").is_file():
        kept = tmp_path / "cut/out/rollouts.jsonl"
        assert kept.read_bytes() == (tmp_path / "whole/out/rollouts.jsonl").read_bytes()
        groups = read_rows(kept, RolloutGroup)
        assert list(dict.fromkeys(group.step for group in groups)) == [2, 4, 6], "the steps that end in a checkpoint"
        assert [group for group in groups if len(group.rollouts) != 4] == []
    assert (tmp_path / "cut/out/checkpoint-2/model.safetensors").is_file(), (
        "what was saved before the interruption is kept"
    )
    assert [path.name for path in sorted(states.iterdir())] == ["checkpoint-4", "checkpoint-6"], (
        "the last two states are kept"
    )

    # Interrupted while the out was being written: nothing is trained again.
    again = train(folder, examples, tmp_path / "cut", Seen())
    assert again["resumed_from"] == 6
    if train is sft:
        # Saved checkpoints were deleted before the interruption: an incomplete set is never
        # published.
        shutil.rmtree(tmp_path / "cut/out")
        (tmp_path / "cut/scratch/saved/checkpoint-2/model.safetensors").unlink()
        with pytest.raises(
            CheckpointGone,
            match=r"checkpoint 2: it was saved by this training and is gone from .*vidbridge scratch clean",
        ):
            train(folder, examples, tmp_path / "cut", Seen())
        assert not (tmp_path / "cut/out").exists()


def test_losses_and_guards_resume_together(folder: Path, examples: list[Example], tmp_path: Path) -> None:
    """As many as go together, briefly: from the state of the second step of four."""
    changes = {
        **UNCLIPPED,
        **RATES,
        "loss": {"cispo_ceiling": 5.0},
        "entropy": {"bonus": 0.01, "top_share": 0.5},
        "mask_truncated": True,
        "overlong": {"weight": 1.0, "margin_tokens": 4},
        "max_prompt_tokens": 1000,
        "steps": 4,
        "prompts_per_step": 2,
    }
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    grpo(folder, examples, whole, Seen(), **changes)
    interrupted(whole / "scratch", cut / "scratch", 2)
    assert grpo(folder, examples, cut, Seen(), **changes)["resumed_from"] == 2
    mine, theirs = weights(cut / "out/final"), weights(whole / "out/final")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert (cut / "out/history.jsonl").read_bytes() == (whole / "out/history.jsonl").read_bytes()
    assert not all(torch.equal(start, theirs[name]) for name, start in weights(folder).items())


def test_same_seed_same_bytes(folder: Path, examples: list[Example], tmp_path: Path) -> None:
    for name in ("one", "two"):
        grpo(folder, examples, tmp_path / name, Seen(), steps=2)
    files = [
        path.relative_to(tmp_path / "one/out") for path in sorted((tmp_path / "one/out").rglob("*")) if path.is_file()
    ]
    assert len(files) > 5
    for file in files:
        assert (tmp_path / "one/out" / file).read_bytes() == (tmp_path / "two/out" / file).read_bytes(), file


def test_draw_keeps_the_mixture_in_every_prefix(examples: list[Example]) -> None:
    order = draw(examples, {"caption": 1.0, "mcqa": 3.0, "dark_event_infer": 0.0}, 80, "7/x")
    for n in range(1, 81):
        caption = sum(examples[i].task == "caption" for i in order[:n])
        assert abs(caption - n / 4) <= 1
    assert sorted(i for i in order[:48] if examples[i].task == "mcqa")[:12] != []
    first = [i for i in order if examples[i].task == "mcqa"][:12]
    assert len(set(first)) == 12, "all are shown once before any is shown again"
    assert order == draw(examples, {"caption": 1.0, "mcqa": 3.0}, 80, "7/x")
    assert order != draw(examples, {"caption": 1.0, "mcqa": 3.0}, 80, "8/x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"structured_caption": 1}}, r"tasks.structured_caption: weight 1.0 but no example"),
        ({"completions_per_device": 6}, r"not a multiple of 6 per device; set one of 1, 2, 4"),
        ({"iterations": 3}, r"save_steps: 2 is not a multiple of iterations 3"),
    ],
)
def test_grpo_refuses(
    folder: Path, examples: list[Example], tmp_path: Path, seen: Seen, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        grpo(folder, examples, tmp_path, seen, **changes)


def test_sft_refuses_a_sample_without_reply(folder: Path, examples: list[Example], tmp_path: Path, seen: Seen) -> None:
    mute = Example("mute", "mcqa", "What?", None, examples[0].load)
    with pytest.raises(ValueError, match="'mute': has no reply"):
        sft(folder, [*examples, mute], tmp_path, seen)
