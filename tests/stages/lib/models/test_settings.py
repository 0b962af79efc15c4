"""Settings of a checkpoint: none of them shapes a reply or a gradient, and saved settings are
usable."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.inference.generate import generate, rollouts
from stages.lib.inference.policy import ModelPolicy
from stages.lib.models.load import load_model, load_pretrained, save_model
from stages.lib.models.processor import EncodedPrompt, encode_prompts, prompt_batch
from stages.lib.training.lora import adapters
from stages.lib.training.mixture import Example
from stages.params import LoraParams
from tests.support.training.tiny import LORA, Paying, Seen, frames, tiny
from tests.support.training.trainers import grpo, sft
from tests.support.training.video_trainer import VIDEOS, config, prepared

ITEMS = [(f"What{' colour' * i}?", frames(i, count=4 + 2 * (i % 2))) for i in range(3)]
TOKENS = 12


def hostile(processor: Any) -> dict[str, Any]:
    """Settings of published or possible checkpoints, each sufficient to change a reply of a tiny
    model."""
    common = list(range(5, 200))
    return {
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1,
        "encoder_repetition_penalty": 5.0,
        "bad_words_ids": [[token] for token in common],
        "sequence_bias": [[[token], -50.0] for token in common],
        "exponential_decay_length_penalty": (1, 50.0),
        "min_new_tokens": TOKENS + 5,
        "num_beams": 3,
        "length_penalty": -5.0,
        "forced_bos_token_id": 7,
        "forced_eos_token_id": 7,
        "begin_suppress_tokens": common,
        "suppress_tokens": common,
        "do_sample": True,
        "temperature": 0.1,
        "top_k": 1,
        "top_p": 0.01,
        "typical_p": 0.1,
        "epsilon_cutoff": 0.5,
        "eta_cutoff": 0.5,
        "min_p": 0.9,
        "max_time": 1e-4,
        "num_return_sequences": 2,
        "max_length": 5,
        "watermarking_config": {
            "greenlist_ratio": 0.1,
            "bias": 50.0,
            "hashing_key": 1,
            "seeding_scheme": "lefthash",
            "context_width": 1,
        },
        "stop_strings": [processor.tokenizer.decode([token]) for token in range(20, 120)],
    }


def replies(model: PreTrainedModel, processor: ProcessorMixin) -> tuple[list[str], list[list[str]]]:
    drawn = rollouts(
        ModelPolicy(model, processor),
        ITEMS,
        ["a", "b", "c"],
        count=2,
        max_new_tokens=TOKENS,
        temperature=1.0,
        batch_size=3,
    )
    return generate(ModelPolicy(model, processor), ITEMS, max_new_tokens=TOKENS, batch_size=2), drawn


def test_greedy_replies_and_rollouts_take_nothing_from_a_checkpoints_settings(tmp_path: Path) -> None:
    model, processor = tiny("qwen2_5_vl")
    save_model(model, processor, tmp_path / "hostile")
    clean, own = replies(model, processor), model.generation_config
    plain = prompt_batch(processor, encode_prompts(processor, [(text, (shown,)) for text, shown in ITEMS]), "cpu")
    changed = set()
    for name, value in hostile(processor).items():
        settings = {**own.to_diff_dict(), "do_sample": True, name: value}
        model.generation_config = GenerationConfig(**settings)
        assert replies(model, processor) == clean, name
        assert getattr(model.generation_config, name) is not None, "it is left as it is"
        # As it may exist on a disk: transformers itself would refuse to write some of these.
        (tmp_path / "hostile/generation_config.json").write_text(json.dumps(settings))
        for load in (
            load_model(tmp_path / "hostile", "fp32"),
            load_pretrained(str(tmp_path / "hostile"), "main", "fp32", 4096),
        ):
            assert load[0].generation_config.to_diff_dict() == own.to_diff_dict(), f"{name} is not handed on"
        assert replies(*load_model(tmp_path / "hostile", "fp32")) == clean, name
        if name in (
            "repetition_penalty",
            "no_repeat_ngram_size",
            "bad_words_ids",
            "sequence_bias",
            "num_beams",
            "suppress_tokens",
        ):
            theirs = model.generate(**plain, max_new_tokens=TOKENS, do_sample=False)
            model.generation_config = own
            ours = model.generate(**plain, max_new_tokens=TOKENS, do_sample=False)
            changed |= set() if torch.equal(theirs, ours) else {name}
    assert {"repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias"} <= changed, (
        "they are in force elsewhere"
    )


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_rollouts_of_training_take_nothing_from_a_checkpoints_settings(
    tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    """Token by token, and before and after the trainer has seen the model."""

    def drawn(name: str, changes: dict[str, Any], later: dict[str, Any]) -> list[list[int]]:
        model, processor = tiny("qwen2_5_vl")
        save_model(model, processor, tmp_path / name)
        model.config._name_or_path = str(tmp_path / name)
        model.generation_config.update(**changes)

        def encode(keys: Sequence[str]) -> list[EncodedPrompt]:
            return encode_prompts(processor, [("What colour is it?", VIDEOS[key]) for key in keys])

        trainer = VideoGRPOTrainer(
            encode=encode,
            model=model,
            rewards=Paying(lambda _, completions: [float(len(text)) for text in completions]),
            args=config(tmp_path, beta=0.0),
            train_dataset=datasets.Dataset.from_dict({"prompt": list(VIDEOS)}),
            processing_class=processor,
            peft_config=None if lora is None else adapters(model, LoraParams.model_validate(lora)),
        )
        model.generation_config.update(**later)
        torch.manual_seed(5)
        return [row for inputs in prepared(trainer) for row in inputs["completion_ids"].tolist()]

    clean = drawn("clean", {}, {})
    _, processor = tiny("qwen2_5_vl")
    settings = {
        name: value for name, value in hostile(processor).items() if name not in ("watermarking_config", "stop_strings")
    }
    together = {
        name: settings[name]
        for name in ("no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "begin_suppress_tokens")
    }
    for changes in (
        together,
        {"num_beams": 3},
        {"exponential_decay_length_penalty": (1, 50.0)},
        {"min_new_tokens": 30},
    ):
        assert drawn("before", changes, {}) == clean, changes
        assert drawn("after", {}, changes) == clean, changes


def test_what_training_saves_is_fit_to_be_used(folder: Path, examples: list[Example], tmp_path: Path) -> None:
    """With the cache that a trainer switches off, and with the settings it was trained and
    evaluated with: none."""
    own = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(
        json.dumps({**own, "repetition_penalty": 1.05, "no_repeat_ngram_size": 3})
    )
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "use_cache": False}))
    sft(folder, examples, tmp_path / "sft", Seen(), steps=2, save_steps=1)
    sft(folder, examples, tmp_path / "lora", Seen(), steps=1, warmup_steps=0, save_steps=1, lora=LORA)
    grpo(
        tmp_path / "sft/out/final",
        examples,
        tmp_path / "grpo",
        Seen(),
        steps=1,
        warmup_steps=0,
        save_steps=1,
        max_completion_tokens=3,
    )
    saved = [path.parent for path in tmp_path.glob("*/out/*/config.json")]
    assert len(saved) == 4
    for out in saved:
        assert json.loads((out / "config.json").read_text())["use_cache"] is True, out
        kept = json.loads((out / "generation_config.json").read_text())
        assert {name: value for name, value in kept.items() if own.get(name) != value} == {}, out


def test_dropout_of_a_checkpoint_is_off(family: str, tmp_path: Path) -> None:
    save_model(*tiny(family), tmp_path / "m")
    settings = json.loads((tmp_path / "m/config.json").read_text())
    settings["text_config"]["attention_dropout"] = 0.5
    (tmp_path / "m/config.json").write_text(json.dumps(settings))
    model, processor = load_model(tmp_path / "m", "fp32")
    model.train()
    batch = prompt_batch(processor, encode_prompts(processor, [(text, (shown,)) for text, shown in ITEMS]), "cpu")
    with torch.no_grad():
        first, second = (model(**batch).logits for _ in range(2))
    assert torch.equal(first, second)
    save_model(model, processor, tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["text_config"]["attention_dropout"] == 0.0
