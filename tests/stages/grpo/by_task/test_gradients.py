"""Cosines between the gradients of tasks: closed forms, and the training's own backward pass as the
reference."""

from __future__ import annotations

import math
from pathlib import Path

import datasets
import pytest
import torch

from stages.grpo.by_task import gradients
from stages.grpo.by_task.gradients import PARTS, Entries, cosines, halves_of, part_of
from stages.grpo.train import train_grpo
from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.models.processor import encode_prompts
from stages.lib.training.mixture import Example
from stages.runtime.ranks.placement import PlacementError
from tests.support.checkout import ROOT
from tests.support.training.tiny import Paying, Seen, grpo_row, tiny
from tests.support.training.video_trainer import VIDEOS, config, rows_of
from tests.support.training.video_trainer import gradients as backward_pass


def test_live_groups_are_dealt_to_two_halves_and_single_ones_left_out() -> None:
    groups = [(0, "a", True), (1, "a", False), (2, "b", True), (3, "a", True), (4, "a", True), (5, "c", True)]
    assert halves_of(groups) == {("a", 0): [0, 4], ("a", 1): [3]}


def test_parts_of_each_family(family: str) -> None:
    model, _ = tiny(family)
    layers = model.config.get_text_config().num_hidden_layers
    found = {name: part_of(name, layers, tied=True) for name, _ in model.named_parameters()}
    assert set(found.values()) == set(PARTS) - {"embeddings"}
    assert found["model.visual.patch_embed.proj.weight"] == "vision"
    assert {part for name, part in found.items() if "merger" in name} == {"merger"}
    assert found["model.language_model.layers.0.mlp.up_proj.weight"] == "early"
    assert found["model.language_model.layers.1.mlp.up_proj.weight"] == "late"
    assert found["model.language_model.embed_tokens.weight"] == "head"
    assert part_of("model.language_model.embed_tokens.weight", layers, tied=False) == "embeddings"
    assert part_of("model.language_model.layers.1.mlp.up_proj.lora_A.default.weight", 3, tied=True) == "early"


def test_cosines_of_known_vectors() -> None:
    halves = {
        ("a", 0): torch.tensor([1.0, 0.0, 0.0]),
        ("a", 1): torch.tensor([1.0, 1.0, 0.0]),
        ("b", 0): torch.tensor([0.0, 2.0, 5.0]),
        ("b", 1): torch.tensor([-1.0, 0.0, 5.0]),
    }
    found = cosines(halves, {"head": [slice(0, 2)], "vision": [slice(2, 3)]})
    half = math.sqrt(0.5)
    assert found == pytest.approx(
        {
            "gradient_cosine/head/a-a": half,
            "gradient_cosine/head/b-b": 0.0,
            "gradient_cosine/head/a-b": (0 - 1 + half - half) / 4,
            "gradient_cosine/vision/b-b": 1.0,  # no half of a has a gradient here
        }
    )


def test_tasks_with_one_gradient_agree_as_much_as_each_with_itself() -> None:
    """Whatever the noise; and the corrected cosine is the true one."""
    draw = torch.Generator().manual_seed(0)
    size, trials = 400, 60
    same, other = torch.randn(size, generator=draw), torch.randn(size, generator=draw)
    other -= (other @ same) / (same @ same) * same
    for truth, target in ((1.0, same), (0.0, other), (math.sqrt(0.5), same / same.norm() + other / other.norm())):
        target = target / target.norm() * same.norm()
        sums = dict.fromkeys(("a-a", "b-b", "a-b"), 0.0)
        for _ in range(trials):
            halves = {
                (task, half): mean + 2 * torch.randn(size, generator=draw)
                for task, mean in (("a", same), ("b", target))
                for half in (0, 1)
            }
            for name, value in cosines(halves, {"head": [slice(0, size)]}).items():
                sums[name.rpartition("/")[2]] += value / trials
        assert 0.15 < sums["a-a"] < 0.25, "mostly noise: 1 of 5 parts of the square"
        assert sums["a-b"] / math.sqrt(sums["a-a"] * sums["b-b"]) == pytest.approx(truth, abs=0.08)


def test_drawn_entries_keep_inner_products_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "MOST_ENTRIES", 50)
    weights = {
        "small": torch.nn.Parameter(torch.zeros(3)),
        **{f"w{n}": torch.nn.Parameter(torch.zeros(20, 20)) for n in range(40)},
    }
    entries = Entries(weights, dict.fromkeys(weights, "head"))
    assert entries.count == 3 + 40 * 50
    draw = torch.Generator().manual_seed(0)
    one = [torch.randn(weight.shape, generator=draw) for weight in weights.values()]
    other = [a + torch.randn(a.shape, generator=draw) for a in one]
    kept = []
    for vectors in (one, other):
        total = torch.zeros(entries.count)
        entries.add(total, vectors)
        kept.append(total)
    exact = sum(float((a * b).sum()) for a, b in zip(one, other, strict=True))
    assert float(kept[0] @ kept[1]) == pytest.approx(exact, rel=0.08)
    entries.add(kept[0], [None] * 41)


@pytest.mark.parametrize("loss", ["dapo", "grpo"])
def test_the_gradient_is_the_training_s_own(tmp_path: Path, loss: str) -> None:
    model, processor = tiny("qwen2_5_vl")
    trainer = VideoGRPOTrainer(
        encode=lambda keys: encode_prompts(processor, [("What?", VIDEOS[key]) for key in keys]),
        gradients_every=1,
        model=model,
        rewards=Paying(
            lambda _, replies: [float(n * 7 % 5) for n in range(len(replies))],
            tasks={"a": "mcqa", "b": "caption", "c": "caption", "d": "mcqa"},
        ),
        args=config(tmp_path, beta=0.0, num_iterations=1, loss_type=loss, gradient_accumulation_steps=2),
        train_dataset=datasets.Dataset.from_dict({"prompt": list(VIDEOS)}),
        processing_class=processor,
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions([{"prompt": key} for key in VIDEOS for _ in range(2)])
    found = {name: value for name, (value,) in trainer._metrics["train"].items() if "cosine" in name}
    assert all(weight.grad is None for weight in trainer.model.parameters())

    halves, part = {}, {}
    for half, rows in {
        ("mcqa", 0): [0, 1],
        ("mcqa", 1): [6, 7],
        ("caption", 0): [2, 3],
        ("caption", 1): [4, 5],
    }.items():
        vectors = backward_pass(trainer, rows_of(inputs, rows))
        part = {name: part_of(name, 2, tied=True) for name in vectors}
        halves[half] = torch.cat([vector.flatten() for vector in vectors.values()])
    entries = Entries({name: weight for name, weight in trainer.model.named_parameters() if name in part}, part)
    assert entries.count == len(halves["mcqa", 0]), "all of so small a model"
    expected = cosines(halves, entries.of_part)
    assert len(expected) == 5 * 3
    assert found == pytest.approx(expected, abs=1e-4)


def test_deepspeed_is_refused(
    folder: Path, examples: list[Example], tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDBRIDGE_DEEPSPEED", str(ROOT / "infra/deepspeed/zero3.json"))
    spare = {"live_decay": 0.9, "least_live": 0.5, "max_lag": 1}
    for changes, message in (
        ({"gradients_every": 5}, "gradients_every: 5, but DeepSpeed takes gradients apart.* set gradients_every 0"),
        ({"resample_rounds": 1, "oversample": spare}, "oversample.max_lag: 1, but under ZeRO-3.* or max_lag 0"),
    ):
        with pytest.raises(PlacementError, match=f"VIDBRIDGE_DEEPSPEED: grpo {message}"):
            train_grpo(
                folder,
                examples,
                grpo_row(**changes),
                stage="grpo@g",
                seed=1,
                rewards=Paying(lambda _, replies: [0.0] * len(replies)),
                out=tmp_path / "out",
                scratch=tmp_path / "scratch",
                hooks=seen.hooks,
            )
