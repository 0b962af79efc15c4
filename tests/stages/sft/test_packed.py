"""Packed rows of supervised training beside padded ones and TRL's own trainer; shards beside each
other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trl import SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from stages.lib.models.packing import SWITCH, Continuation, packed_inputs
from stages.lib.models.processor import encode_prompts, reply_ids, training_batch
from stages.lib.training.loop import Resumes
from stages.lib.training.mixture import Example
from stages.lib.training.rates import RatesOfParts
from stages.sft import train
from tests.support.training.fixtures import examples as examples
from tests.support.training.fixtures import family as family
from tests.support.training.fixtures import folder as folder
from tests.support.training.fixtures import seen as seen
from tests.support.training.tiny import LORA, REPLIES, Seen, frames, tiny
from tests.support.training.trainers import history, interrupted, sft

#: Prompts of different lengths, one with two videos.
PROMPTS = (
    ("What colour is it?", (frames(1),)),
    ("What colour is number 3 ? And what is number 4 ?", (frames(2), frames(3, size=(32, 48)))),
    ("Colour?", (frames(4, count=6),)),
)


def batches(model: Any, processor: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    prompts = encode_prompts(processor, PROMPTS)
    replies = [REPLIES[0], REPLIES[1] * 2, "<think>red</think>"]
    continuations = [Continuation(p, [reply_ids(processor, r)]) for p, r in zip(prompts, replies, strict=True)]
    return packed_inputs(model.base_model, processor, continuations, "cpu"), training_batch(processor, prompts, replies)


def gradients(model: Any, inputs: dict[str, Any], share: float = 1.0) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean loss of the scored tokens, times ``share``, and its gradients."""
    model.zero_grad()
    outputs = model(**inputs, use_cache=False, fused_lm_head=True)
    loss = -outputs.log_probs.sum() / outputs.label_mask.sum() * share
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


def test_a_packed_row_has_the_loss_and_the_gradients_of_padded_rows(family: str) -> None:
    model, processor = tiny(family)
    add_fused_lm_head(model)
    packed, padded = batches(model, processor)
    assert packed["input_ids"].numel() < int(padded["attention_mask"].sum()), "no padding, and no last token"
    loss, found = gradients(model, packed)
    expected_loss, expected = gradients(model, padded)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_two_shards_have_one_sum_in_either_order(family: str) -> None:
    """In turn, gradients are added up. Side by side, each process has twice the loss and half the
    gradient, and the two are added in an order that nobody chose."""
    model, processor = tiny(family)
    add_fused_lm_head(model)
    shards = batches(model, processor)
    first, second = (gradients(model, shard)[1] for shard in shards)
    halves = [{name: g / 2 for name, g in gradients(model, shard, share=2.0)[1].items()} for shard in shards]
    for name in first:
        assert torch.equal(first[name] + second[name], halves[1][name] + halves[0][name]), name


class AsTrlDoes(Resumes, RatesOfParts, SFTTrainer):
    """TRL's own loss and metrics."""


def test_ten_steps_on_packed_rows_are_those_of_trl_on_padded_rows(
    folder: Path, examples: list[Example], tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured: losses differ by 4e-7 of themselves."""
    monkeypatch.setattr(train, "LOGGING_STEPS", 1)
    row: dict[str, Any] = {"steps": 10, "samples_per_step": 4, "samples_per_device": 4, "save_steps": 5}
    sft(folder, examples, tmp_path / "packed", seen, **row)
    sft(folder, examples, tmp_path / "shards", seen, **row | {"samples_per_device": 2})
    with monkeypatch.context() as patch:
        patch.setenv(SWITCH, "0")
        sft(folder, examples, tmp_path / "padded", seen, **row)
        patch.setattr(train, "Trainer", AsTrlDoes)
        sft(folder, examples, tmp_path / "trl", seen, **row)
    expected, trained = history(tmp_path / "trl"), load_file(tmp_path / "trl/out/final/model.safetensors")
    assert {"loss", "grad_norm", "entropy", "mean_token_accuracy"} <= expected[0].keys()
    for name in ("packed", "shards", "padded"):
        assert history(tmp_path / name) == [pytest.approx(step, rel=1e-4, abs=1e-6) for step in expected], name
        weights = load_file(tmp_path / name / "out/final/model.safetensors")
        assert max(float((weights[key] - trained[key]).abs().max()) for key in trained) < 1e-4, name

    again = tmp_path / "again"
    interrupted(tmp_path / "packed/scratch", again / "scratch", 5)
    assert sft(folder, examples, again, seen, **row)["resumed_from"] == 5
    for file in ("final/model.safetensors", "history.jsonl"):
        assert (again / "out" / file).read_bytes() == (tmp_path / "packed/out" / file).read_bytes()


def test_adapters_with_dropout_and_checkpointing_train_on_packed_rows(
    folder: Path, examples: list[Example], tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "LOGGING_STEPS", 1)
    row: dict[str, Any] = {"steps": 3, "samples_per_step": 4, "lora": LORA, "gradient_checkpointing": True}
    sft(folder, examples, tmp_path / "packed", seen, **row)
    sft(folder, examples, tmp_path / "dropout", seen, **row | {"lora": LORA | {"dropout": 0.3}})
    monkeypatch.setenv(SWITCH, "0")
    sft(folder, examples, tmp_path / "padded", seen, **row | {"gradient_checkpointing": False})
    assert history(tmp_path / "packed") == [
        pytest.approx(step, rel=1e-4, abs=1e-6) for step in history(tmp_path / "padded")
    ]
    # A new adapter adds nothing, so its dropout shows from the second step on.
    assert history(tmp_path / "dropout")[-1]["loss"] != history(tmp_path / "packed")[-1]["loss"]
