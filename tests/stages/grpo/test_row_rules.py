"""Keys of a row that cancel each other are refused at load: refused settings have no effect,
accepted ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from pydantic import ValidationError

from flows.params_file.recipes import smoke_version
from stages.grpo.advantages import normalised, scaled, summed
from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.models.processor import encode_prompts
from stages.params import ParamsError, load_params, parse_params
from tests.support.checkout import ROOT
from tests.support.training.tiny import LORA, Paying, grpo_row, sft_row, tiny
from tests.support.training.video_trainer import VIDEOS, config, gradients

CONTRAST = {"weight": 0.3, "ratio": 0.8, "rollouts": 2, "min_share": 1.0}
LENGTH = {"weight": 0.2, "min_words": 3, "max_words": 6, "min_share": 1.0}
QA = {"mcqa": 1, "mix_vid_qa": 1}
CISPO, SAPO = {"cispo_ceiling": 5.0}, {"sapo_positive": 1.0, "sapo_negative": 1.05}
UNCLIPPED = {"epsilon": None, "epsilon_high": None}
KEPT = {"resample_rounds": 1, "oversample": {"live_decay": 0.9, "least_live": 0.25, "max_lag": 2}}
RATES = {"vision": 1e-5, "merger": None}

REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"temporal_contrast": CONTRAST, "tasks": QA},
        (
            r"temporal_contrast: cancelled by scale_rewards 'group': replies to mcqa and mix_vid_qa earn 0 or 1, and 0"
            r" and 1.3 .* write"
        ),
    ),
    ({"temporal_contrast": CONTRAST, "tasks": {"mcqa": 1}}, "temporal_contrast: cancelled by"),
    ({"temporal_contrast": CONTRAST, "tasks": {"mcqa": 1, "caption": 0}}, "temporal_contrast: cancelled by"),
    ({"temporal_contrast": {**CONTRAST, "min_share": 0.0}}, r"temporal_contrast.min_share: with 0 .* set more than 0"),
    (
        {"temporal_contrast": {**CONTRAST, "min_share": 0.0}, "scale_rewards": "none"},
        r"temporal_contrast.min_share: with 0 .* set more than 0",
    ),
    (
        {"scale_rewards": "batch", "prompts_per_step": 1},
        "scale_rewards: the 'batch' of prompts_per_step 1 is one group: write group",
    ),
    (
        {"length": {**LENGTH, "min_words": 9, "max_words": 20}},
        r"length.min_words: 9 words do not fit into max_completion_tokens 8",
    ),
    ({"length": {**LENGTH, "min_words": 0, "max_words": 20}}, r"length: 0 to 20 words holds every reply .* narrow it"),
    (
        {"epsilon_high": 0.28},
        r"epsilon_high: 0.28 beside epsilon 0.2 has no effect with iterations 1.* write iterations 2 or more",
    ),
    ({"importance": "sequence", "loss": "grpo"}, "importance: 'sequence' has no effect with iterations 1"),
    ({**UNCLIPPED, "loss": CISPO}, "loss: 'cispo' has the gradient of 'dapo' with iterations 1, .* or loss dapo"),
    ({**UNCLIPPED, "loss": SAPO}, "loss: 'sapo' has the gradient of 'grpo' with iterations 1, .* or loss grpo"),
    (
        {**UNCLIPPED, "loss": CISPO, "iterations": 2, "epsilon": 0.2},
        "epsilon: 0.2 has no effect under loss cispo.* epsilon null",
    ),
    (
        {**UNCLIPPED, "loss": SAPO, "iterations": 2, "epsilon_high": 0.2},
        "epsilon_high: 0.2 has no effect under loss sapo",
    ),
    (
        {**UNCLIPPED, "loss": SAPO, "iterations": 2, "delta": 2.0},
        "delta: 2 has no effect under loss sapo.* write delta null",
    ),
    (
        {**UNCLIPPED, "loss": SAPO, "iterations": 2, "importance": "sequence"},
        "'sequence' needs loss 'grpo', found 'sapo'",
    ),
    ({"loss": {"cispo_ceiling": 1.0}, "iterations": 2}, "cispo_ceiling"),
    ({"epsilon": None}, "epsilon: null, but loss 'dapo' clips ratios; write a number"),
    ({"delta": 2.0}, "delta: 2 has no effect with iterations 1.* or delta null"),
    ({"delta": 1.2, "iterations": 2}, "delta: 1.2 acts as 1.2, where epsilon_high clips already; write more"),
    ({"entropy": {"bonus": 0.0, "top_share": 1.0}}, "entropy: bonus 0 and top_share 1 change nothing; write"),
    (
        {"overlong": {"weight": 1.0, "margin_tokens": 8}},
        "overlong.margin_tokens: 8 of max_completion_tokens 8 leaves no reply without a penalty; write less",
    ),
    (
        {"mixed": {"gamma": 0.1}, "importance": "sequence", "loss": "grpo", "iterations": 2},
        "mixed: its rule is about the ratio of a token, and importance is 'sequence'; write importance token",
    ),
    ({"learning_rates": {"vision": None, "merger": None}}, "learning_rates: neither vision nor merger .* null"),
    ({"learning_rates": RATES, "freeze": ["vision"]}, "learning_rates: of the vision tower .* `freeze` takes out"),
    ({"learning_rates": RATES, "lora": LORA}, "learning_rates: lora.targets name nothing in the vision tower"),
    ({"warmup_steps": 6}, "warmup_steps: 6 of 6 steps; .* write at most 5"),
    ({"steps": 1}, "warmup_steps: 1 of 1 steps"),
    ({"aggregation": "normalise", "scale_rewards": "none"}, "aggregation: 'normalise' scales each part"),
    (
        {"leave_out": ("thinking",)},
        "leave_out: 'thinking' is a part of structured_caption, which this row does not train",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cancels_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        grpo_row(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        # Under another scale the bonus moves the group as a whole against others, or more of what
        # is right against what is wrong.
        {"temporal_contrast": CONTRAST, "tasks": QA, "scale_rewards": "none"},
        {"temporal_contrast": CONTRAST, "tasks": QA, "scale_rewards": "batch"},
        {"temporal_contrast": CONTRAST, "tasks": QA, "scale_rewards": {"task_decay": 0.99}},
        {"temporal_contrast": CONTRAST, "tasks": QA, "aggregation": "normalise"},
        # Three values are not an affine map of two.
        {"temporal_contrast": CONTRAST, "tasks": QA, "length": LENGTH},
        {"temporal_contrast": CONTRAST, "tasks": {"caption": 1}},
        {"temporal_contrast": CONTRAST, "tasks": {"dark_event_infer": 1}},
        # A group is of one task: the captions' have something of it.
        {"temporal_contrast": CONTRAST, "tasks": {"mcqa": 1, "caption": 1}},
        {"scale_rewards": "batch", "prompts_per_step": 2},
        {"length": {**LENGTH, "min_words": 0, "max_words": 5}},
        {"length": {**LENGTH, "min_words": 4, "max_words": 20}},
        {"epsilon_high": 0.28, "iterations": 2},
        {"importance": "sequence", "loss": "grpo", "iterations": 2},
        {"warmup_steps": 5},
        {"steps": 1, "warmup_steps": 0},
        {"resample_rounds": 2, "scale_rewards": "none"},
        {**UNCLIPPED, "loss": CISPO, "iterations": 2},
        {**UNCLIPPED, "loss": SAPO, "iterations": 2},
        {"delta": 4.0, "iterations": 2},
        # Groups that are kept have ratios of their own.
        {**UNCLIPPED, "loss": CISPO, **KEPT},
        {"delta": 4.0, **KEPT},
        {"delta": 4.0, "iterations": 2, "importance": "sequence", "loss": "grpo"},
        {"entropy": {"bonus": 0.01, "top_share": 0.2}},
        {"overlong": {"weight": 1.0, "margin_tokens": 4}, "mask_truncated": True},
        # What is paid for the length tells right replies apart.
        {"temporal_contrast": CONTRAST, "tasks": QA, "overlong": {"weight": 1.0, "margin_tokens": 4}},
        {"learning_rates": RATES},
        {"learning_rates": RATES, "lora": {**LORA, "targets": ["q_proj", "visual.qkv"]}},
    ],
)
def test_what_changes_something_is_not(changes: dict[str, Any]) -> None:
    assert grpo_row(**changes)


def test_a_value_in_place_of_a_table_is_told_the_keys_of_the_table() -> None:
    recipe = yaml.safe_load((ROOT / "infra/recipes/smoke.yaml").read_text())
    recipe["grpo"]["bridge"] |= {"loss": "cispo", "sampler": "live"}
    recipe["synthesize"]["tasks"]["caption"] = 1
    with pytest.raises(ParamsError) as caught:
        parse_params(recipe)
    for told in (
        "grpo.bridge.loss: not a table (value 'cispo'); write {cispo_ceiling: …}",
        "grpo.bridge.sampler: not a table (value 'live'); write {live_decay: …, least_live: …}",
        "synthesize.tasks.caption: not a table (value 1); write {KEY: VALUE}",
    ):
        assert told in str(caught.value)


def test_sft_rows_teach_what_they_say() -> None:
    for changes, message in (
        ({"brief_share": {"dark_event_infer": 0.5}}, "brief_share: 'dark_event_infer' is not trained by this row"),
        (
            {"tasks": {"structured_caption": 1}, "brief_share": {"structured_caption": 0.5}},
            "brief_share: the traces of 'structured_caption' are analyses",
        ),
        ({"tasks": {"mcqa": 1}, "careless_share": 0.5}, "careless_share: 0.5, but a letter cannot be short"),
    ):
        with pytest.raises(ValidationError, match=message):
            sft_row(**changes)
    assert sft_row(brief_share={"dark_event_infer": 0.0, "mcqa": 0.5}, careless_share=0.5)


@pytest.mark.parametrize(
    ("tasks", "changes", "refused"),
    [
        ({"mcqa": 1}, {"drop_always_right": False, "min_spread": 0.05}, True),
        ({"caption": 1}, {"drop_always_right": True, "min_spread": 0.0}, True),
        ({"caption": 1}, {"drop_always_right": True, "min_spread": 0.0, "max_samples_per_task": 8}, False),
        ({"mcqa": 1}, {"drop_always_right": True, "min_spread": 0.0}, False),
        ({"mcqa": 1, "caption": 1}, {"drop_always_right": False, "min_spread": 0.05}, False),
    ],
)
def test_a_filter_that_drops_nothing_is_refused(tasks: dict[str, Any], changes: dict[str, Any], refused: bool) -> None:
    table = yaml.safe_load((ROOT / "infra/recipes/vidbridge-r1.yaml").read_text(encoding="utf-8")) | {"ablation": None}
    table["grpo"]["mixed"]["tasks"] = tasks
    table["difficulty"]["mixed"] |= {"max_samples_per_task": None} | changes
    if not refused:
        assert parse_params(table)
        return
    with pytest.raises(
        ParamsError, match=r"difficulty.mixed: drop_always_right: \w+ and min_spread: 0.*drop no sample of .* delete"
    ):
        parse_params(table)


def test_the_bonus_of_right_or_wrong_tasks_is_gone_under_group_scale_and_not_under_others() -> None:
    """T-GRPO's paper adds .3 to each right reply: of 3 of 8, and of all."""
    plain = torch.tensor([[1.0, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0], [1] * 8, [0] * 8])
    bonus = torch.where(torch.tensor([[True], [False], [True], [False]]), plain, 0.0)
    parts, weights = torch.stack([plain, bonus], dim=2), torch.tensor([1.0, 0.3])
    moved = {
        scale: float((scaled(summed(parts, weights), scale) - scaled(plain, scale)).abs().max())
        for scale in ("group", "batch", "none")
    }
    assert moved["group"] < 1e-4
    assert min(moved["batch"], moved["none"]) > 0.05
    assert float((normalised(parts, weights) - normalised(parts[:, :, :1], weights[:1])).abs().max()) > 0.05
    # From 0 on it is paid to all, and is gone under every scale.
    everyone = torch.stack([plain, torch.tensor([[1.0], [0], [1], [0]]).expand(4, 8)], dim=2)
    assert torch.allclose(scaled(summed(everyone, weights), "none"), scaled(plain, "none"), atol=1e-6)


def test_with_one_update_a_generation_gspo_and_clip_higher_change_no_gradient(tmp_path: Path) -> None:
    model, processor = tiny("qwen2_5_vl")
    found = []
    for level, high in (("token", 0.2), ("sequence", 0.2), ("token", 0.28)):
        torch.manual_seed(0)
        trainer = VideoGRPOTrainer(
            encode=lambda keys: encode_prompts(processor, [("What?", VIDEOS[key]) for key in keys]),
            model=model,
            rewards=Paying(lambda _, completions: [float(n % 3) for n in range(len(completions))]),
            args=config(
                tmp_path,
                beta=0.0,
                num_iterations=1,
                num_generations=4,
                loss_type="grpo",
                importance_sampling_level=level,
                epsilon_high=high,
            ),
            train_dataset=datasets.Dataset.from_dict({"prompt": list(VIDEOS)}),
            processing_class=processor,
        )
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 2
        if not found:
            inputs = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
        found.append(gradients(trainer, inputs))
    for other in found[1:]:
        assert max(float((found[0][name] - other[name]).abs().max()) for name in other) < 1e-6
    assert any(gradient.any() for gradient in found[0].values())


def test_a_small_version_keeps_a_length_that_can_be_paid(tmp_path: Path) -> None:
    table = yaml.safe_load((ROOT / "infra/recipes/vidbridge-r1.yaml").read_text(encoding="utf-8"))
    # Video-R1's own.
    table["grpo"]["mixed"]["length"] = {"weight": 0.2, "min_words": 320, "max_words": 512, "min_share": 1.0}
    # DAPO's share of the limit.
    table["grpo"]["mixed"]["overlong"] = {"weight": 1.0, "margin_tokens": 410}
    folder = tmp_path / "infra/recipes"
    folder.mkdir(parents=True)
    (folder / "long.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    (folder / "smoke.yaml").write_text(
        (ROOT / "infra/recipes/smoke.yaml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    (tmp_path / "params.yaml").write_text(smoke_version(tmp_path, "long"), encoding="utf-8")
    row = load_params(tmp_path / "params.yaml").grpo["mixed"]
    assert row.overlong is not None
    assert row.overlong.margin_tokens == row.max_completion_tokens // 2
    assert row.length is not None
    assert 1 < row.length.min_words < row.length.max_words < row.max_completion_tokens
