"""GRPO whose rollouts the real rollout engine draws, on this machine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from stages.domain.rl.rollouts import RolloutGroup
from stages.lib.engine.process import VARIABLE
from stages.lib.models.load import save_model
from stages.lib.rows.jsonl import read_rows
from stages.lib.training.mixture import Example
from tests.support.servers.engine.real import ENVIRON, NEEDED
from tests.support.training.tiny import FAMILIES, Seen, tiny
from tests.support.training.trainers import Cut, Killed, grpo, history

pytestmark = NEEDED

ROW: dict[str, Any] = {"steps": 4, "prompts_per_step": 2, "max_completion_tokens": 12, "learning_rate": 3e-3}


@pytest.fixture(autouse=True)
def _engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**ENVIRON, VARIABLE: "vllm", "VIDBRIDGE_ENGINE_KV_CACHE_GB": "0.25"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("freeze", [[], ["vision"]], ids=["trained-tower", "frozen-tower"])
@pytest.mark.parametrize("family", FAMILIES)
def test_training_on_its_rollouts(family: str, freeze: list[str], examples: list[Example], tmp_path: Path) -> None:
    model, processor = tiny(family)
    save_model(model, processor, tmp_path / "base")
    seen = Seen()
    grpo(tmp_path / "base", examples, tmp_path, seen, **ROW, freeze=freeze)
    steps = history(tmp_path)
    assert len(steps) == 4
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in steps)
    # Placeholders are never drawn and have a probability in the loss, .003 to .011 of an untrained
    # model: tokens are drawn with a little more than they have in the loss, never with less.
    assert max(row["sampling/logp_difference/mean"] for row in steps) < 0.02
    assert max(row["sampling/ratio/max"] for row in steps) < 1 + 1e-3
    trained, start = (load_file(tmp_path / f"{at}/model.safetensors") for at in ("out/final", "base"))
    tower = [name for name in start if "visual." in name]
    assert tower
    assert all(torch.equal(trained[name], start[name]) for name in tower) == bool(freeze)
    assert not [child for child in psutil.Process().children(recursive=True) if "engine" in " ".join(child.cmdline())]


def test_one_generation_ahead_and_resumed(folder: Path, examples: list[Example], tmp_path: Path) -> None:
    row = {**ROW, "steps": 6, "staleness": 1}
    grpo(folder, examples, tmp_path / "whole", Seen(), **row)
    steps = history(tmp_path / "whole")
    assert [step["staleness"] for step in steps] == [0, 1, 1, 1, 1, 1]
    assert steps[-1]["sampling/ratio/max"] > 1.001, "the policy has moved"
    with pytest.raises(Killed):
        grpo(folder, examples, tmp_path / "cut", Cut(), **row)
    assert grpo(folder, examples, tmp_path / "cut", Seen(), **row)["resumed_from"] == 4
    cut, whole = (
        [group.sample_id for group in read_rows(tmp_path / home / "out/rollouts.jsonl", RolloutGroup)]
        for home in ("cut", "whole")
    )
    assert cut == whole, "the same prompts; replies are those of the same batches"
    for one, other in zip(history(tmp_path / "cut"), steps, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-3)
