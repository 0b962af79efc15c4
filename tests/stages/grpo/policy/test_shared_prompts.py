"""A prompt computed once for its group teaches what one row a reply teaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file

from stages.grpo.policy.shared_prompts import SharedPrompts
from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.models.load import freeze, save_model
from stages.lib.models.processor import VideoFields, encode_prompts
from stages.lib.training.lora import adapters
from stages.lib.training.mixture import Example
from stages.params import LoraParams
from tests.support.training.tiny import LORA, Paying, Seen, tiny
from tests.support.training.trainers import grpo, history
from tests.support.training.video_trainer import TOLERANCE, VIDEOS, config, gradients

#: Settings under which both ways are compared: what is trained, and what else the pass gives.
WAYS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "frozen": {"frozen": True},
    "adapters": {"lora": LORA},
    "checkpointed": {"activation_checkpointing": True},
    "entropy": {"entropy_coef": 0.1, "top_entropy_quantile": 0.5},
    "sequences": {"importance_sampling_level": "sequence", "loss_type": "grpo"},
}


def trainer_of(
    family: str, tmp_path: Path, *, frozen: bool = False, lora: dict[str, Any] | None = None, **changes: Any
) -> VideoGRPOTrainer:
    """A trainer with a reference policy and old log-probabilities, four replies to a prompt."""
    model, processor = tiny(family)
    save_model(model, processor, tmp_path / "model")
    model.config._name_or_path = str(tmp_path / "model")
    if frozen:
        freeze(model, ["vision"])
    trainer = VideoGRPOTrainer(
        encode=lambda keys: encode_prompts(processor, [(f"What is {key}?", VIDEOS[key]) for key in keys]),
        model=model,
        rewards=Paying(lambda _, replies: [float(len(reply) % 5) for reply in replies]),
        args=config(tmp_path, **{"num_generations": 4, **changes}),
        train_dataset=datasets.Dataset.from_dict({"prompt": list(VIDEOS)}),
        processing_class=processor,
        peft_config=None if lora is None else adapters(model, LoraParams.model_validate(lora)),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    torch.manual_seed(1)
    with torch.no_grad():  # the policy is no longer the reference
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.02)
    return trainer


@pytest.mark.parametrize("way", WAYS)
def test_both_ways_have_one_gradient(family: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(family, tmp_path, **WAYS[way])
    inputs = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    tokens: list[int] = []
    text = trainer._plain_model.base_model.language_model
    text.register_forward_hook(lambda *passed: tokens.append(passed[-1].last_hidden_state[..., 0].numel()))
    shared = gradients(trainer, inputs)
    monkeypatch.setenv("VIDBRIDGE_SHARED_PREFIX", "0")
    padded = gradients(trainer, inputs)
    assert shared.keys() == padded.keys()
    largest = max(float(gradient.abs().max()) for gradient in padded.values())
    assert largest > 1e-3
    assert max(float((shared[name] - padded[name]).abs().max()) for name in padded) < TOLERANCE * max(1.0, largest)
    prompts = {
        tuple(ids[mask.bool()].tolist()) for ids, mask in zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True)
    }
    assert len(prompts) == 2
    # A prompt's last token stands before each reply, whose own last token is left out.
    replies = int(inputs["completion_mask"].sum())
    assert tokens == [
        sum(len(prompt) - 1 for prompt in prompts) + replies,
        inputs["prompt_ids"].numel() + inputs["completion_ids"].numel(),
    ]


def test_replies_to_a_prompt_stay_in_one_round(tmp_path: Path) -> None:
    trainer = trainer_of("qwen2_5_vl", tmp_path, beta=0.0, num_iterations=1)
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert trainer._buffered_inputs is not None
    assert [len({id(video) for video in inputs["videos"]}) for inputs in trainer._buffered_inputs] == [1, 1]


@pytest.mark.parametrize("iterations", [1, 2])
def test_ten_steps_end_at_the_same_weights(
    folder: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, iterations: int
) -> None:
    changes: dict[str, Any] = {"steps": 10, "save_steps": 10, "iterations": iterations, "prompts_per_step": 2}
    grpo(folder, examples, tmp_path / "shared", Seen(), **changes)
    monkeypatch.setenv("VIDBRIDGE_SHARED_PREFIX", "0")
    grpo(folder, examples, tmp_path / "padded", Seen(), **changes)
    start = load_file(folder / "model.safetensors")
    shared, padded = (load_file(tmp_path / way / "out/final/model.safetensors") for way in ("shared", "padded"))
    moved = max(float((padded[name] - start[name]).abs().max()) for name in start)
    assert max(float((shared[name] - padded[name]).abs().max()) for name in start) < moved / 50
    for ours, expected in zip(history(tmp_path / "shared"), history(tmp_path / "padded"), strict=True):
        assert ours.get("reward") == pytest.approx(expected.get("reward"))
        assert ours.get("entropy") == pytest.approx(expected.get("entropy"), rel=1e-3)


VIDEO, OTHER = (VideoFields(torch.full((4, 6), value), torch.tensor([[1, 2, 2]]), (0.5,)) for value in (0.0, 1.0))


def test_rows_are_grouped_by_prompt_and_values_return_to_them() -> None:
    ids = torch.tensor([[0, 1, 2, 7, 8], [3, 1, 2, 9, 0], [0, 1, 2, 5, 0], [0, 1, 2, 6, 6], [0, 1, 2, 4, 4]])
    attended = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    shared = SharedPrompts(ids, attended, 2, [VIDEO, VIDEO, VIDEO, VIDEO, OTHER])
    assert [(prompt.ids, replies) for prompt, replies in shared.continuations] == [
        ((1, 2), [[7, 8], [5]]),
        ((3, 1, 2), [[9]]),
        ((1, 2), [[4, 4]]),
    ], "the reply that is out of the loss is not computed; another video is another prompt"
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    assert shared.by_row(values).tolist() == [[1, 2], [4, 0], [3, 0], [0, 0], [5, 6]]
    assert [shared.place(row, 0) for row in (0, 1, 2, 4)] == [0, 3, 2, 4]


def test_a_batch_without_any_token_in_the_loss_keeps_its_graph() -> None:
    """Every process passes through the model, whatever its rows are worth."""
    shared = SharedPrompts(torch.tensor([[1, 2, 7]]), torch.tensor([[1, 1, 0]]), 1, [VIDEO])
    assert [replies for _, replies in shared.continuations] == [[(2,)]]
    value = torch.tensor([[3.0]], requires_grad=True)
    placed = shared.by_row(value)
    assert placed.tolist() == [[0.0]]
    placed.sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [[0.0]]
