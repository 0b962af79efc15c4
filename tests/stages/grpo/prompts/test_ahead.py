"""Rollouts drawn ahead: by which policy, judged beside training, and resumed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.domain.core.records import Score
from stages.grpo.prompts.ahead import Drawn, load, save
from stages.grpo.step import StepScores
from stages.lib.inference.decode import Limits, SeededDraws, decode
from stages.lib.models.load import load_model
from stages.lib.models.processor import encode_prompts, placeholder_ids
from stages.lib.models.settings import end_ids
from stages.lib.training.mixture import Example
from tests.support.training.chosen import CHOSEN, partly_dead
from tests.support.training.tiny import Seen, length_reward
from tests.support.training.trainers import Cut, Killed, grpo, history

GAP, RATIO = "sampling/logp_difference", "sampling/ratio"


def drawn(generation: int, rows: Sequence[int]) -> Drawn:
    scores = [Score(sample_id=f"s{row}", task="mcqa", reply="r", format_ok=True, value=1.0) for row in rows]
    verdicts = StepScores(scores, [1.0] * len(rows), {"task": [1.0] * len(rows)}, {"length": 2.5})
    return Drawn(
        generation, 3, [f"s{row}" for row in rows], [[row, 7] for row in rows], [[-0.1, -1 / 3]] * len(rows), verdicts
    )


def test_waiting_rollouts_are_saved_whole_and_dealt_to_other_processes(tmp_path: Path) -> None:
    file = tmp_path / "ahead.json"
    saved = [[drawn(4, (0, 1)), drawn(5, (4, 5))], [drawn(4, (2, 3)), drawn(5, (6, 7))]]
    save(file, saved)
    assert [load(file, process, 2) for process in (0, 1)] == saved, "with their verdicts, to the last digit"
    (fourth, fifth) = load(file, 0, 1)
    assert (fourth.generation, fourth.keys, fourth.ids) == (4, ["s0", "s1", "s2", "s3"], [[n, 7] for n in range(4)])
    assert (fifth.generation, fifth.keys, fifth.scores) == (5, ["s4", "s5", "s6", "s7"], None)
    assert [part.keys for part in load(file, 3, 4)] == [["s3"], ["s7"]]
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing", 0, 1)


def test_a_generation_is_sampled_by_the_policy_before(folder: Path, examples: list[Example], tmp_path: Path) -> None:
    judged: list[tuple[str, list[str], list[str]]] = []

    def noted(keys: Sequence[str], replies: Sequence[str]) -> list[float | None]:
        judged.append((threading.current_thread().name, list(keys), list(replies)))
        return length_reward(keys, replies)

    grpo(folder, examples, tmp_path, Seen(), reward=noted, staleness=1, steps=3, save_steps=1)
    steps = history(tmp_path)
    assert [row["staleness"] for row in steps] == [0, 1, 1]
    first, _, last = steps
    # Tokens that are never drawn have a probability in the loss, and none in sampling.
    assert first[f"{GAP}/mean"] < 0.01
    assert first[f"{RATIO}/max"] <= 1
    assert last[f"{GAP}/mean"] > 0.05, "the policy has moved"
    assert last[f"{RATIO}/max"] > 1
    assert not any(name.startswith("clock/") for row in steps for name in row)
    assert [len(keys) for _, keys, _ in judged] == [16] * 3, "each once"
    assert {name for name, _, _ in judged} == {"rollouts"}, "beside the main thread"

    by_id = {example.sample_id: example for example in examples}
    for generation, of in enumerate(("", "", "out/checkpoint-1")):
        model, processor = load_model(tmp_path / of if of else folder, "fp32")
        _, keys, replies = judged[generation]
        prompts = encode_prompts(processor, [(by_id[key].prompt, (by_id[key].load(),)) for key in keys])
        seeds = [f"1/grpo@bridge/rollouts/{generation}/0/{row}" for row in range(len(keys))]
        ids = decode(
            model,
            processor,
            prompts,
            SeededDraws(seeds, 1.0, torch.device("cpu")),
            Limits(8, tuple(end_ids(model, processor)), tuple(placeholder_ids(processor))),
        )
        texts = processor.tokenizer.batch_decode([reply.ids for reply in ids], skip_special_tokens=True)
        assert [reply.endswith(text) for reply, text in zip(replies, texts, strict=True)] == [True] * len(keys), (
            generation
        )


@pytest.mark.parametrize(
    ("staleness", "changes"),
    [(1, {}), (2, {"iterations": 2}), (1, {**CHOSEN, "epsilon_high": 0.28, "mixed": {"gamma": 0.1}})],
    ids=["one", "two", "chosen"],
)
def test_resumed_training_is_the_uninterrupted_one(
    folder: Path, examples: list[Example], tmp_path: Path, staleness: int, changes: dict[str, Any]
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    row = {"staleness": staleness, "prompts_per_step": 2, "max_completion_tokens": 12, **changes}
    grpo(folder, examples, whole, Seen(), reward=partly_dead, **row)
    with pytest.raises(Killed):
        grpo(folder, examples, resumed, Cut(), reward=partly_dead, **row)
    assert grpo(folder, examples, resumed, Seen(), reward=partly_dead, **row)["resumed_from"] == 4
    assert history(resumed) == history(whole)
    one, other = (load_file(home / "out/final/model.safetensors") for home in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_error_of_the_judge_ends_training(folder: Path, examples: list[Example], tmp_path: Path) -> None:
    def broken(keys: Sequence[str], replies: Sequence[str]) -> list[float | None]:
        raise OSError("the judge is gone")

    with pytest.raises(OSError, match="the judge is gone"):
        grpo(folder, examples, tmp_path, Seen(), reward=broken, staleness=1)
