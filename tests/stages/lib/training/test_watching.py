"""A watched training: the same weights and random numbers as without, a curve that survives a kill,
and the checkpoint that is kept."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stages.domain.core.records import Checkpoint
from stages.errors import InputError
from stages.lib.models.load import save_model
from stages.lib.rows.jsonl import read_rows
from stages.lib.training.mixture import Example
from stages.lib.training.watching import Kept, kept, random_state_kept, weights_digest
from tests.support.checkout import ROOT
from tests.support.training.tiny import LORA, Seen, tiny
from tests.support.training.trainers import Cut, Killed, grpo, history, sft
from tests.support.training.watched import watching


def same_weights(one: Path, other: Path) -> None:
    mine, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


@pytest.mark.parametrize(
    ("train", "changes"),
    [
        (sft, {}),
        pytest.param(grpo, {}, marks=pytest.mark.slow),
        pytest.param(sft, {"gradient_checkpointing": True, "lora": LORA | {"dropout": 0.1}}, marks=pytest.mark.slow),
        pytest.param(grpo, {"gradient_checkpointing": True, "lora": LORA, "beta": 0.05}, marks=pytest.mark.slow),
        pytest.param(grpo, {"freeze": ["vision"], "iterations": 2}, marks=pytest.mark.slow),
    ],
)
def test_watching_changes_no_weight_and_no_random_number(
    train: Any, changes: dict[str, Any], folder: Path, examples: list[Example], tmp_path: Path, seen: Seen
) -> None:
    changes |= {"steps": 4}
    train(folder, examples, tmp_path / "plain", Seen(), **changes)
    train(folder, examples, tmp_path / "watched", seen, watching(examples), **changes)
    for name in ("checkpoint-2", "final"):
        same_weights(tmp_path / "plain/out" / name, tmp_path / "watched/out" / name)
    states = [
        torch.load(tmp_path / kind / "scratch/state/checkpoint-4/rng_state.pth", weights_only=False)
        for kind in ("plain", "watched")
    ]
    assert states[0]["python"] == states[1]["python"]
    assert np.array_equal(states[0]["numpy"][1], states[1]["numpy"][1])
    assert torch.equal(states[0]["cpu"], states[1]["cpu"])

    # Beside the same history stands a curve, from the start to the end.
    curve = {row["step"]: row for row in history(tmp_path / "watched") if "watch/greedy" in row}
    assert list(curve) == [0, 2, 4]
    named = {
        f"watch/{kind}{task}" for kind in ("greedy", "sampled", "pass", "spread") for task in ("", "/caption", "/mcqa")
    }
    assert {name for name in curve[2] if name.startswith("watch/")} == named | {"watch/format", "watch/unjudged"}
    for row in curve.values():
        for kind in ("greedy", "sampled", "pass", "spread"):
            assert row[f"watch/{kind}"] == pytest.approx((row[f"watch/{kind}/caption"] + row[f"watch/{kind}/mcqa"]) / 2)
        assert row["watch/pass"] >= row["watch/sampled"]
    unwatched = [
        {name: value for name, value in row.items() if not name.startswith("watch/")}
        for row in history(tmp_path / "watched")
    ]
    assert [row for row in unwatched if len(row) > 1] == history(tmp_path / "plain")
    assert [step for step, values in seen.metrics if "watch/greedy" in values] == [0, 2, 4]


@pytest.mark.slow
def test_a_killed_training_measures_nothing_twice(folder: Path, examples: list[Example], tmp_path: Path) -> None:
    whole: list[int] = []
    grpo(folder, examples, tmp_path / "whole", Seen(), watching(examples, asked=whole))

    first: list[int] = []
    second: list[int] = []
    # One step behind the last checkpoint that is not the end.
    with pytest.raises(Killed):
        grpo(folder, examples, tmp_path / "cut", Cut(), watching(examples, asked=first))
    # As if the last save had been cut short too: step 4 is trained again, and was measured.
    (tmp_path / "cut/scratch/state/checkpoint-4/manifest.json").unlink()
    with (tmp_path / "cut/scratch/watched.jsonl").open("a") as journal:
        journal.write('{"step": 6, "wei')
    again = Seen()
    summary = grpo(folder, examples, tmp_path / "cut", again, watching(examples, asked=second))
    assert summary["resumed_from"] == 2
    assert first + second == whole, "measured at 0, 2, 4, and after the kill at 6 alone"
    assert history(tmp_path / "cut") == history(tmp_path / "whole")
    assert [step for step, values in again.metrics if "watch/greedy" in values] == [4, 6]


@pytest.mark.slow
def test_other_weights_are_measured_again(folder: Path, examples: list[Example], tmp_path: Path) -> None:
    """A measurement in scratch counts for the weights that it saw."""
    asked: list[int] = []
    sft(folder, examples, tmp_path, Seen(), watching(examples, asked=asked), steps=3)
    journal = tmp_path / "scratch/watched.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2, 3]
    once = len(asked)
    for state in (tmp_path / "scratch/state").iterdir():
        (state / "manifest.json").unlink()
    rows[1]["weights"] = rows[0]["weights"]
    journal.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sft(folder, examples, tmp_path, Seen(), watching(examples, asked=asked), steps=3)
    assert len(asked) == once + once // 3, "step 2 alone"


def falling(calls: list[int]) -> Any:
    """Scores that are best at the second measurement, and as good at the third."""

    def shares(_: Any, replies: Sequence[str]) -> list[float]:
        calls.append(len(replies))
        # 6 greedy replies in batches of 4.
        return [(0.2, 0.8, 0.8, 0.4)[(len(calls) - 1) // 2]] * len(replies)

    return shares


def test_the_best_checkpoint_is_kept_and_named(folder: Path, examples: list[Example], tmp_path: Path) -> None:
    class Told(Seen):
        steps: list[tuple[int, str, bool]]

        def on_checkpoint(self, checkpoint: Checkpoint, folder: Path) -> None:
            super().on_checkpoint(checkpoint, folder)
            self.steps = [*getattr(self, "steps", []), (checkpoint.step, checkpoint.path, checkpoint.final)]

    seen = Told()
    watch = watching(examples, falling([]), keep="best", sampled=None)
    summary = grpo(folder, examples, tmp_path, seen, watch)
    expected = {"keep": "best", "step": 4, "score": 0.8, "last_step": 6, "last_score": 0.4}
    assert summary["kept"] == pytest.approx(expected)
    out = tmp_path / "out"
    assert json.loads((out / "summary.json").read_text())["kept"] == summary["kept"]
    records = read_rows(out / "checkpoints.jsonl", Checkpoint)
    assert [(one.step, one.path, one.final) for one in records] == [
        (2, "checkpoint-2", False),
        (4, "final", True),
        (6, "checkpoint-6", False),
    ]
    assert [round(one.metrics["watch/greedy"], 6) for one in records] == [0.8, 0.8, 0.4]
    assert all("loss" in one.metrics for one in records)
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["checkpoint-2", "checkpoint-6", "final"]
    same_weights(out / "final", tmp_path / "scratch/state/checkpoint-4")
    assert seen.steps == [
        (2, "checkpoint-2", False),
        (4, "checkpoint-4", False),
        (6, "checkpoint-6", False),
        (4, "final", True),
    ], "which one is the row's policy is known at the end"


def test_a_failed_judge_is_no_zero(folder: Path, examples: list[Example], tmp_path: Path, seen: Seen) -> None:
    told: list[tuple[int, int, str]] = []

    def silent(samples: Any, replies: Sequence[str]) -> list[float | None]:
        return [None if sample.task == "mcqa" else 0.5 for sample, _ in zip(samples, replies, strict=True)]

    watch = watching(examples, silent, lambda *counts: told.append(counts), sampled=None)
    sft(folder, examples, tmp_path, seen, watch, steps=3)
    curve = [values for _, values in seen.metrics if "watch/unjudged" in values]
    assert len(curve) == 3
    for values in curve:
        assert values["watch/greedy/caption"] == 0.5
        assert values["watch/unjudged"] == 3
        assert "watch/greedy" not in values, "a mean over tasks needs all of them"
        assert "watch/greedy/mcqa" not in values
    assert told == [(3, 6, "stage, a measurement on the validation split")] * 3
    with pytest.raises(InputError, match=r"watch\.keep: 'best', and no saved checkpoint has a score.*keep: last"):
        kept("best", history(tmp_path), [2, 3], 3)


def test_of_equal_checkpoints_the_later_is_kept() -> None:
    curve = [
        {"step": step, "watch/greedy": score} for step, score in ((0, 0.9), (2, 0.5), (4, 0.7), (6, 0.7), (7, 0.1))
    ]
    assert kept("best", curve, [2, 4, 6, 8], 8) == Kept("best", 6, 0.7, 8, None)
    assert kept("last", curve, [2, 4, 6, 8], 8) == Kept("last", 8, None, 8, None)


def test_random_states_are_kept_whatever_is_drawn() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    def draws() -> None:
        with random_state_kept():
            random.random(), np.random.rand(), torch.rand(1)
            raise Killed

    with pytest.raises(Killed):
        draws()
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_the_digest_of_weights_sees_a_bit_of_a_trained_one() -> None:
    model, _ = tiny("qwen2_5_vl")
    model.base_model.visual.requires_grad_(False)
    digests = [weights_digest(model)]
    with torch.no_grad():
        next(model.base_model.visual.parameters()).add_(1)
        digests.append(weights_digest(model))
        weight = next(weight for weight in model.parameters() if weight.requires_grad).view(-1)
        weight[3] = torch.nextafter(weight[3], weight[3] + 1)
        digests.append(weights_digest(model))
    assert digests[0] == digests[1] != digests[2]


def start(base: Path, home: Path, how: str = "", ranks: int = 1, config: str = "") -> Any:
    """Train both ways, watched and unwatched, on so many processes. Returns the curves."""
    home.mkdir(exist_ok=True)
    (home / "base").symlink_to(base)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    environ |= {"VIDBRIDGE_RANKS": str(ranks)} | ({"VIDBRIDGE_DEEPSPEED": config} if config else {})
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.training.watched", str(home), *filter(None, [how])]
    done = subprocess.run(command, cwd=home, env=environ, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads((home / "told.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Curves of one process without DeepSpeed."""
    home = tmp_path_factory.mktemp("alone")
    save_model(*tiny("qwen2_5_vl"), home / "start")
    return start(home / "start", home / "one")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed is installed on Linux only")
@pytest.mark.parametrize(
    ("engine", "how"), [("", ""), ("zero2", ""), ("zero3", ""), ("zero3", "frozen")], ids=lambda name: name or "none"
)
def test_two_processes_share_a_measurement(alone: Any, folder: Path, tmp_path: Path, engine: str, how: str) -> None:
    """None waits for the other, training is as unwatched, and scores are those of one process."""
    told = start(folder, tmp_path / "two", how, 2, str(ROOT / f"infra/deepspeed/{engine}.json") if engine else "")
    for name in ("sft", "grpo"):
        assert told[f"{name}-watched"][0] == alone[f"{name}-watched"][0], "at the start, bit for bit"
        assert [step for step, _ in told[f"{name}-watched"]] == [0, 2, 3]
        watched, plain = (tmp_path / f"two/{name}-{kind}/out" for kind in ("watched", "unwatched"))
        kept_step = json.loads((watched / "summary.json").read_text())["kept"]["step"]
        for at in (2, 3):
            same_weights(
                watched / ("final" if kept_step == at else f"checkpoint-{at}"),
                plain / ("final" if at == 3 else f"checkpoint-{at}"),
            )
