"""Gauges by task: places in replies, and what is measured there against plain forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from stages.grpo.by_task.gauges import (
    FIRST_TOKENS,
    Places,
    Total,
    ending_tokens,
    merged,
    metrics_of,
    places,
    stop_probability,
)
from stages.grpo.by_task.measuring import due
from stages.grpo.policy.generation import DecodesRollouts
from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.inference.decode import SeededDraws
from stages.lib.models.processor import encode_prompts
from stages.lib.training.lora import adapters
from stages.params import LoraParams
from tests.support.training.tiny import LORA, Paying, tiny
from tests.support.training.video_trainer import TEMPERATURE, VIDEOS, config, plain_distributions

REPLY = ["<think>", "it", "</think>", "<answer>", "a", " red", " bar", " rises", " then", " grows", "</answer>"]


def test_places_are_the_first_answer_tokens_and_the_end_of_the_first_event() -> None:
    assert places(REPLY, "caption") == Places((4, 5, 6, 7), (8,))
    assert places([*REPLY[:9], "</answer>"], "caption").ends == (8,), "'then' joins nothing, and ends the event"
    assert places([*REPLY[:8], "</answer>"], "caption").ends == (8,), "one event: behind the whole answer"
    assert places(REPLY[:8], "caption") == Places((4, 5, 6, 7), ()), "cut off within the first event"
    assert places(REPLY[:9], "caption").ends == (8,), "cut off behind it"
    assert places([*REPLY[:8], ".", " It", " grows", "</answer>"], "caption").ends == (8, 9), "a mark lies between"
    assert places([*REPLY[:8], ".</", "answer>"], "caption").ends == (8,), "a mark and the tag in one token"
    assert places([*REPLY[:7], " rises then", "</answer>"], "caption").ends == (), "ends within a token"
    assert places([*REPLY[:4], "\n", "B", "</answer>"], "mcqa") == Places((5,), ())
    assert places(REPLY[:3], "caption") == Places((), ())
    assert len(places(REPLY, "caption").first) == FIRST_TOKENS


def test_tokens_that_end_an_answer() -> None:
    texts = ["</", ".</", " </answer>", "</think>", "<", "answer>", ".", "</a", "!\n</answer", "<|im_end|>"]
    assert ending_tokens(texts, [9]) == [0, 1, 2, 7, 8, 9]


def test_stop_probability_adds_the_path_through_a_mark() -> None:
    assert stop_probability([0.3], 0.9) == 0.3
    assert stop_probability([0.3, 0.5], 0.4) == pytest.approx(0.3 + 0.4 * 0.5)


def test_measurements_of_processes_are_one_mean_and_one_maximum() -> None:
    one = {("logp_gap", "mcqa"): Total.of([0.1, 0.3]), ("answer_entropy", "mcqa"): Total.of([])}
    other = {("logp_gap", "mcqa"): Total.of([0.8])}
    found = metrics_of(merged([one, other]))
    assert found == pytest.approx({"logp_gap/mcqa": 0.4, "logp_gap_max/mcqa": 0.8})


def test_a_measurement_is_due_on_one_of_the_steps_of_a_generation() -> None:
    assert [step for step in range(9) if due(3, step, 1)] == [0, 3, 6]
    assert [step for step in range(0, 12, 2) if due(3, step, 2)] == [0, 2, 6, 8]
    assert not any(due(0, step, 1) for step in range(3))


def trainer_of(tmp_path: Path, *, lora: bool = False, **changes: Any) -> VideoGRPOTrainer:
    model, processor = tiny("qwen2_5_vl")
    trainer = VideoGRPOTrainer(
        encode=lambda keys: encode_prompts(processor, [("What?", VIDEOS[key]) for key in keys]),
        gauges_every=1,
        model=model,
        rewards=Paying(
            lambda keys, replies: [
                1.0 if key == "a" else float(len(reply)) for key, reply in zip(keys, replies, strict=True)
            ],
            tasks={"a": "mcqa", "b": "caption", "c": "caption", "d": "mcqa"},
        ),
        args=config(tmp_path, beta=0.0, num_iterations=1, max_completion_length=24, **changes),
        train_dataset=datasets.Dataset.from_dict({"prompt": list(VIDEOS)}),
        processing_class=processor,
        peft_config=adapters(model, LoraParams.model_validate(LORA)) if lora else None,
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    if lora:
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in trainer.model.parameters():
                if weight.requires_grad:
                    weight.add_(torch.randn_like(weight) * 0.05)
    return trainer


SAID = [
    "<think>it is red</think><answer>B</answer>",
    "<think>it is red</think><answer>a</answer>",
    "<think>it</think><answer>a red bar is. it is a bar</answer>",
    "<think>it</think><answer>a bar</answer>",
    "<think>it is red</think><answer>a red bar then it is",
    "it is red",
    "<think>it is red</think><answer>a</answer>",
    "<think>it is red</think><answer>a b c d e f</answer>",
]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_gauges_are_those_of_a_plain_forward_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: bool) -> None:
    trainer = trainer_of(tmp_path, lora=lora)
    tokenizer = trainer.processing_class.tokenizer
    said = [tokenizer(text).input_ids for text in SAID]
    monkeypatch.setattr(DecodesRollouts, "_generate_single_turn", lambda *_, **__: (said, None))
    inputs = [{"prompt": key} for key in VIDEOS for _ in range(2)]
    trainer._generate_and_score_completions(inputs)
    logged = {name: values for name, values in trainer._metrics["train"].items() if "/" in name}
    assert logged["dead_groups/mcqa"] == [0.5], "of a all are paid alike"
    assert logged["dead_groups/caption"] == [0.0]

    entropies: dict[str, list[float]] = {"mcqa": [], "caption": []}
    stops: list[float] = []
    closing = tokenizer.convert_tokens_to_ids("</answer>")
    for row, (prompt, ids) in enumerate(zip(inputs, said, strict=True)):
        logps = _logps(trainer, prompt["prompt"], ids)
        pieces = [tokenizer.decode([token]) for token in ids]
        task = "mcqa" if prompt["prompt"] in "ad" else "caption"
        if "<answer>" in pieces:
            start = pieces.index("<answer>") + 1
            stop = pieces.index("</answer>") if "</answer>" in pieces else len(pieces)
            own = [n for n in range(start, stop) if pieces[n].strip()][:FIRST_TOKENS]
            entropies[task].append(sum(-(logps[n].exp() * logps[n]).sum().item() for n in own) / len(own))
        if row == 2:  # behind "is", and through the mark
            at = next(n for n in range(len(ids)) if "".join(pieces[:n]).endswith("a red bar is"))
            ending = [logps[n, [closing, *trainer.eos_token_ids]].exp().sum().item() for n in (at, at + 1)]
            stops.append(ending[0] + logps[at, ids[at]].exp().item() * ending[1])
        if row in (3, 4):
            end = "a bar" if row == 3 else "a red bar"
            at = next(n for n in range(len(ids) + 1) if "".join(pieces[:n]).endswith(end))
            stops.append(logps[at, [closing, *trainer.eos_token_ids]].exp().sum().item())
    for task, values in entropies.items():
        assert logged[f"answer_entropy/{task}"] == [pytest.approx(sum(values) / len(values), abs=2e-5)]
    assert logged["stop_after_first/caption"] == [pytest.approx(sum(stops) / len(stops), abs=1e-6)]
    assert "stop_after_first/mcqa" not in logged


class _DrawsWithout(SeededDraws):
    """Draws that leave some tokens out."""

    def __init__(self, never: Sequence[int], *args: Any) -> None:
        super().__init__(*args)
        self._never = torch.tensor(never)

    def __call__(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        return super().__call__(logits.index_fill(1, self._never, -torch.inf), rows)


def _logps(trainer: VideoGRPOTrainer, key: str, completion: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of all tokens at each place of a completion, alone and without padding."""
    (prompt,) = encode_prompts(trainer.processing_class, [("What?", VIDEOS[key])])
    with torch.no_grad():
        return plain_distributions(trainer.model, trainer.processing_class, prompt.ids, completion, prompt.videos)


def test_generation_and_training_have_equal_log_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(tmp_path)
    inputs = [{"prompt": key} for key in VIDEOS for _ in range(2)]
    logged = trainer._metrics["train"]
    trainer._generate_and_score_completions(inputs)
    # A random start gives two tokens of 320 to the placeholders, which are never sampled.
    assert 0.0005 < logged["logp_gap/mcqa"][0] < logged["logp_gap_max/mcqa"][0] < 0.02

    with monkeypatch.context() as patched:
        # The same tokens, with their log-probabilities among all tokens, as in the loss.
        never = trainer.generation_config.suppress_tokens
        patched.setattr("stages.grpo.policy.generation.SeededDraws", partial(_DrawsWithout, never))
        patched.setattr(trainer.generation_config, "suppress_tokens", None)
        trainer._generate_and_score_completions(inputs)
    for task in ("mcqa", "caption"):
        assert 0 < logged[f"logp_gap/{task}"][1] < logged[f"logp_gap_max/{task}"][1] < 1e-5

    # Sampled at another temperature than the loss computes with.
    trainer.generation_config.temperature = 2 * TEMPERATURE
    trainer._generate_and_score_completions(inputs)
    assert logged["logp_gap/mcqa"][2] > 0.05
