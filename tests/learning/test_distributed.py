"""Several processes and DeepSpeed, on CPU ranks: the same code paths that several GPUs take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.learning.distributed import Placement, check_saving, launch, placement, rank_environment, share

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


def ranks(home: Path, steps: int, **environ: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "two_ranks", str(home), str(steps)],
        cwd=HERE,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "VIDBRIDGE_RANKS": "2",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            **environ,
        },
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return dict(json.loads((home / "told.json").read_text()))


def moved(before: Path, after: Path) -> None:
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    if "lm_head.weight" in new:  # DeepSpeed writes the tied weight under both of its names
        assert torch.equal(new["lm_head.weight"], new["model.embed_tokens.weight"])
    assert old.keys() - {"lm_head.weight"} == new.keys() - {"lm_head.weight"}
    old.pop("lm_head.weight", None)
    assert [name for name in old if old[name].shape != new[name].shape] == []
    assert [name for name in old if torch.equal(old[name].float(), new[name].float())] == []


@pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed is installed on Linux only")
@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_deepspeed_trains_both_on_two_ranks(folder: Path, tmp_path: Path, stage: int) -> None:
    told = ranks(tmp_path, 2, VIDBRIDGE_DEEPSPEED=str(ROOT / f"infra/deepspeed/zero{stage}.json"))
    for name in ("sft", "grpo"):
        assert told[name]["deepspeed_stage"] == stage, "the engine that trained, not the one that was asked for"
        assert told[name]["parameters"] == sum(p.numel() for p in load_file(folder / "model.safetensors").values())
    moved(folder, tmp_path / "sft/out/final")
    moved(tmp_path / "sft/out/final", tmp_path / "grpo/out/final")
    assert told["saved"] == [["final", True], ["final", True]]
    assert any(values.get("deepspeed_stage") == stage for values in told["metrics"])


def test_placement_reads_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "z.json"
    config.write_text("{}")
    assert placement({"VIDBRIDGE_RANKS": "3", "VIDBRIDGE_DEEPSPEED": str(config)}) == Placement(3, config)
    with pytest.raises(ValueError, match="VIDBRIDGE_RANKS: 'two'"):
        placement({"VIDBRIDGE_RANKS": "two"})
    with pytest.raises(ValueError, match=r"VIDBRIDGE_DEEPSPEED: nowhere.json.*name a file like"):
        placement({"VIDBRIDGE_DEEPSPEED": "nowhere.json"})
    config.write_text("{")
    with pytest.raises(ValueError, match="VIDBRIDGE_DEEPSPEED"):
        placement({"VIDBRIDGE_DEEPSPEED": str(config)})
    assert rank_environment(Placement(2, config))["ACCELERATE_USE_DEEPSPEED"] == "true"
    monkeypatch.setenv("VIDBRIDGE_RANKS", "1")
    monkeypatch.delenv("VIDBRIDGE_DEEPSPEED", raising=False)
    assert launch("stages.sft", ["x"]) is None


def test_share() -> None:
    assert share("x", 64, 64, 1) == (64, 1)
    assert share("x", 64, 64, 2) == (32, 1)
    assert share("x", 64, 8, 2) == (8, 4)
    with pytest.raises(ValueError, match="cannot be dealt evenly to 3"):
        share("x", 64, 64, 3)
    with pytest.raises(ValueError, match="choose one of 1, 2, 4, 8, 16"):
        share("x", 64, 24, 2)


def test_weights_that_would_not_be_saved_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((ROOT / "infra/deepspeed/zero3.json").read_text())
    path = tmp_path / "z.json"
    monkeypatch.setenv("VIDBRIDGE_DEEPSPEED", str(path))
    path.write_text(json.dumps(config))
    check_saving()
    del config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"VIDBRIDGE_DEEPSPEED: .*z.json: zero_optimization.stage3_gather.* set it to true"):
        check_saving()
