"""Training that is measured by task is the same training; and with a sampler and a surplus, a
resumed one is the uninterrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.lib.training.mixture import Example
from tests.support.training.chosen import CHOSEN, MEASURED, partly_dead
from tests.support.training.tiny import LORA, Seen
from tests.support.training.trainers import Cut, Killed, grpo, history


def train(folder: Path, examples: list[Example], home: Path, seen: Seen, **changes: Any) -> dict[str, Any]:
    return grpo(folder, examples, home, seen, reward=partly_dead, **changes)


def weights(home: Path) -> dict[str, torch.Tensor]:
    return load_file(home / "out/final/model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora": LORA, "gradient_checkpointing": True, "beta": 0.05},
        {"gradient_checkpointing": True, "loss": "grpo", "iterations": 2, "prompts_per_step": 6},
        {"freeze": ["vision"], **CHOSEN},
    ],
    ids=["plain", "lora", "checkpointing", "frozen"],
)
def test_a_measured_training_is_the_same(
    folder: Path, examples: list[Example], tmp_path: Path, changes: dict[str, Any]
) -> None:
    small = {"steps": 4, "save_steps": 4, **changes}
    for name, more in (("plain", {}), ("measured", MEASURED)):
        train(folder, examples, tmp_path / name, Seen(), **small, **more)
    plain, measured = weights(tmp_path / "plain"), weights(tmp_path / "measured")
    assert plain.keys() == measured.keys()
    assert [name for name in plain if not torch.equal(plain[name], measured[name])] == []
    assert any(not torch.equal(value, load_file(folder / "model.safetensors")[name]) for name, value in plain.items())

    added: set[str] = set()
    for before, after in zip(history(tmp_path / "plain"), history(tmp_path / "measured"), strict=True):
        assert {name: after[name] for name in before} == before
        added |= after.keys() - before.keys()
    assert {"dead_groups/mcqa", "dead_groups/caption", "logp_gap/mcqa", "logp_gap_max/caption"} <= added
    parts = {name.split("/")[1] for name in added if name.startswith("gradient_cosine/")}
    expected = {"vision", "merger", "early", "late", "head"}
    if "freeze" in changes:
        expected -= {"vision", "merger"}
    if "lora" in changes:
        expected = {"early", "late"}
    assert parts == expected
    pairs = {name.split("/")[2] for name in added if name.startswith("gradient_cosine/")}
    assert pairs <= {"caption-caption", "caption-mcqa", "mcqa-mcqa"}
    assert pairs


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"iterations": 2, "beta": 0.05, "scale_rewards": {"task_decay": 0.9}}])
def test_a_resumed_training_is_the_uninterrupted_one(
    folder: Path, examples: list[Example], tmp_path: Path, changes: dict[str, Any]
) -> None:
    every = {**MEASURED, **CHOSEN, "steps": 8, "save_steps": 2, **changes}
    train(folder, examples, tmp_path / "whole", Seen(), **every)
    logged = history(tmp_path / "whole")
    assert sum(row.get("surplus/used", 0.0) for row in logged) > 0
    assert max(row.get("surplus/lag", 0.0) for row in logged) <= 2
    assert all(row["prompt_share/mcqa"] + row["prompt_share/caption"] == pytest.approx(1) for row in logged[::2])

    home = tmp_path / "resumed"
    with pytest.raises(Killed):
        train(folder, examples, home, Cut(), **every)
    spare = sorted((home / "scratch/state/checkpoint-4").glob("*.safetensors"))
    assert [path.name for path in spare] == ["model.safetensors", "surplus.safetensors"]
    summary = train(folder, examples, home, Seen(), **every)
    assert summary["resumed_from"] == 4
    assert "tasks" not in summary, "the sampler chose them"
    assert history(home) == logged
    whole, resumed = weights(tmp_path / "whole"), weights(home)
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert (home / "out/rollouts.jsonl").read_bytes() == (tmp_path / "whole/out/rollouts.jsonl").read_bytes()
    published = {path.name for path in (home / "out/final").iterdir()}
    assert not published & {"surplus.safetensors", "task_sampler.json"}
