"""Several processes and DeepSpeed, on CPU ranks: the same code paths that several GPUs take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.domain.rl.rollouts import RolloutGroup
from stages.lib.models.load import save_model
from stages.lib.rows.jsonl import read_rows
from stages.lib.training.mixture import Example
from stages.runtime.ranks import distributed
from stages.runtime.ranks.distributed import (
    Placement,
    PlacementError,
    check_saving,
    launch,
    placement,
    rank_environment,
    share,
)
from tests.support.checkout import ROOT
from tests.support.training.tiny import Seen, tiny
from tests.support.training.trainers import sft
from tests.support.training.trajectory import LOSSES


def start(module: str, home: Path, *arguments: object, ranks: int, **environ: str) -> dict[str, Any]:
    """Run a module of tests/support/training on so many processes; what it told."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"tests.support.training.{module}", str(home), *map(str, arguments)],
        cwd=home,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "VIDBRIDGE_RANKS": str(ranks),
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


ENGINES = {
    "zero2": "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer",
    "zero3": "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3",
    "zero3-offload": "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3",
}
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed is installed on Linux only")


def config(name: str) -> str:
    return str(ROOT / f"infra/deepspeed/{name}.json")


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_deepspeed_trains_both_on_two_ranks(
    folder: Path, tmp_path: Path, name: str, examples: list[Example], seen: Seen
) -> None:
    # As on a machine without a compiler: nothing may be compiled on the way.
    stage, missing = int(name[4]), str(tmp_path / "missing")
    told = start(
        "two_ranks", tmp_path, 2, ranks=2, VIDBRIDGE_DEEPSPEED=config(name), CXX=missing, TORCH_EXTENSIONS_DIR=missing
    )
    for row in ("sft", "grpo"):
        assert told[row]["deepspeed_stage"] == stage, "the engine that trained, not the one that was asked for"
        assert told[row]["engine"] == ENGINES[name]
        assert told[row]["parameters"] == sum(p.numel() for p in load_file(folder / "model.safetensors").values())
    moved(folder, tmp_path / "sft/out/final")
    moved(tmp_path / "sft/out/final", tmp_path / "grpo/out/final")
    assert told["saved"] == [["final", True], ["final", True]]
    groups = read_rows(tmp_path / "grpo/out/rollouts.jsonl", RolloutGroup)
    assert len({group.sample_id for group in groups}) == 2, "a prompt of each process"
    paid = [rollout.paid for group in groups for rollout in group.rollouts]
    assert (len(paid), paid.count({})) == (8, 1), "one reply of the first process has no reward"
    assert any(values.get("deepspeed_stage") == stage for values in told["metrics"])

    # Without DeepSpeed its state has no optimiser to go on with, and transformers would go on all
    # the same.
    with pytest.raises(
        PlacementError, match=r"interrupted with DeepSpeed on 2 processes and cannot go on with no DeepSpeed; set them"
    ):
        sft(folder, examples, tmp_path / "sft", seen, steps=4)


@linux_only
@pytest.mark.slow
def test_processes_of_zero3_agree_on_each_pass_through_a_frozen_tower(folder: Path, tmp_path: Path) -> None:
    """One that remembers a video while another has to see it again would wait for weights that the
    other is not gathering."""
    told = start("two_ranks", tmp_path, 4, "frozen", ranks=2, VIDBRIDGE_DEEPSPEED=config("zero3"))
    assert told["grpo"]["engine"] == ENGINES["zero3"]
    before, after = (
        load_file(home / "model.safetensors") for home in (tmp_path / "sft/out/final", tmp_path / "grpo/out/final")
    )
    still = [name for name, value in before.items() if torch.equal(value, after[name])]
    assert still == [name for name in before if "visual" in name]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training by one process without DeepSpeed, in `one`; its start and its rollouts, in
    `shared`."""
    home = tmp_path_factory.mktemp("trajectory")
    for name in ("one", "shared"):
        (home / name).mkdir()
    save_model(*tiny("qwen2_5_vl"), home / "shared/base")
    start("trajectory", home / "one", home / "shared", ranks=1)
    return home


#: Means over the micro-batches of a process, for reading only: how rows are dealt to micro-batches
#: decides them.
NOT_COMPARED = ("entropy", "kl", "clip_ratio", "cispo_clip_ratio")


def history(out: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith(NOT_COMPARED)} for row in rows]


def furthest(left: Path, right: Path) -> float:
    """The largest difference of a weight between two model folders."""
    mine, other = (load_file(folder / "model.safetensors") for folder in (left, right))
    shared = mine.keys() & other.keys()
    assert mine.keys() ^ other.keys() <= {"lm_head.weight"}
    return max(float((mine[name] - other[name]).abs().max()) for name in shared)


ROWS = ("sft", "grpo", "off-policy")


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize("name", [None, "zero2", "zero3", "zero3-offload"])
def test_two_processes_take_the_steps_of_one(name: str | None, alone: Path, tmp_path: Path) -> None:
    """SFT and GRPO: losses, gradient norms and weights, whatever the engine; and resumed midway, as
    if never interrupted.

    Float32; measured: losses differ by up to 5e-7, gradient norms by 1e-6 of themselves, weights by
    8e-6 where they moved by 2e-3 or more.
    """
    environ = {} if name is None else {"VIDBRIDGE_DEEPSPEED": config(name)}
    told = start("trajectory", tmp_path, alone / "shared", *ROWS, ranks=2, **environ)
    for row in ROWS:
        mine, theirs = tmp_path / row / "out", alone / "one" / row / "out"
        assert told[row]["engine"] == (
            "torch.nn.parallel.distributed.DistributedDataParallel" if name is None else ENGINES[name]
        )
        steps = list(zip(history(mine), history(theirs), strict=True))
        assert len(steps) == 4
        for step, expected in steps:
            assert {"loss", "grad_norm", "learning_rate"} <= expected.keys()
            deepspeed_only = {"deepspeed_stage"}
            assert {k: v for k, v in step.items() if k not in deepspeed_only} == pytest.approx(
                expected, rel=1e-5, abs=2e-6
            )
        assert furthest(theirs / "final", alone / "shared/base") > 1e-3
        assert furthest(mine / "final", theirs / "final") < 3e-5

        again = tmp_path / f"{row}-resumed/out"
        assert told[f"{row}-resumed"]["resumed_from"] == 2
        assert history(again) == [pytest.approx(step, rel=1e-5, abs=2e-6) for step in history(mine)]
        assert furthest(again / "final", mine / "final") < 3e-6


@pytest.mark.slow
def test_losses_and_equal_rewards_are_those_of_one_process(alone: Path, tmp_path: Path) -> None:
    """Measured as above; before `bnpo` was divided by the tokens of the generation, its loss
    differed by up to 6e-3."""
    compared = (*LOSSES, "alike", "partly-alike")
    start("trajectory", tmp_path, alone / "shared", *compared, ranks=2)
    for row in compared:
        mine, theirs = tmp_path / row / "out", alone / "one" / row / "out"
        assert history(mine) == [pytest.approx(step, rel=1e-5, abs=2e-6) for step in history(theirs)], row
        assert furthest(mine / "final", theirs / "final") < 3e-5, row
        moved_by = furthest(mine / "final", alone / "shared/base")
        # Of steps that generate.
        fractions = [step["frac_reward_zero_std"] for step in history(mine) if "frac_reward_zero_std" in step]
        if row == "alike":
            assert (moved_by, fractions) == (0.0, [1.0] * 4)
        else:
            assert moved_by > 1e-3
        if row == "partly-alike":
            assert fractions == pytest.approx([1 / 3] * 4), "one prompt of each three"
            assert [step["gauge/zero_variance_groups"] for step in history(mine)] == fractions, "of whole groups"


@pytest.mark.slow
def test_gauges_by_task_are_those_of_one_process(tmp_path: Path) -> None:
    """With a group on both of two processes, and prompts by the live groups of all."""
    for name in ("one", "two", "shared"):
        (tmp_path / name).mkdir()
    save_model(*tiny("qwen2_5_vl"), tmp_path / "shared/base")
    for name, ranks in (("one", 1), ("two", 2)):
        start("trajectory", tmp_path / name, tmp_path / "shared", "watched", ranks=ranks)
    one, two, resumed = (
        history(tmp_path / name / "out") for name in ("one/watched", "two/watched", "two/watched-resumed")
    )
    sampled = {name for row in one for name in row if name.startswith("logp_gap")}
    assert sampled, "one process sampled the rollouts of both"
    for row, expected, again in zip(two, one, resumed, strict=True):
        expected = {name: value for name, value in expected.items() if name not in sampled}
        cosines = {name for name in expected if name.startswith("gradient_cosine/")}
        assert {"dead_groups/caption", "prompt_share/mcqa", "gradient_cosine/vision/mcqa-mcqa"} <= expected.keys()
        for found in (row, again):
            assert found.keys() == expected.keys()
            assert {name: found[name] for name in cosines} == pytest.approx(
                {name: expected[name] for name in cosines}, abs=2e-4
            )
            assert {name: value for name, value in found.items() if name not in cosines} == pytest.approx(
                {name: value for name, value in expected.items() if name not in cosines}, rel=1e-5, abs=2e-6
            )
    assert two[0]["dead_groups/caption"] == 1.0
    assert two[3]["prompt_share/caption"] > two[0]["prompt_share/caption"]


def test_an_engine_that_was_asked_for_and_does_not_train_ends_training(
    folder: Path, examples: list[Example], tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDBRIDGE_DEEPSPEED", config("zero2"))
    with pytest.raises(PlacementError, match="VIDBRIDGE_DEEPSPEED: set, but no process group was launched"):
        sft(folder, examples, tmp_path / "a", seen)
    # As where Accelerate leaves DeepSpeed out, which it does for `use_cpu=True` without a word.
    monkeypatch.setattr(distributed, "trainer_placement", lambda: {"use_cpu": True})
    with pytest.raises(
        PlacementError, match=r"VIDBRIDGE_DEEPSPEED: set, but .*Qwen2_5_VL\w+ trains, not a DeepSpeed engine; unset it"
    ):
        sft(folder, examples, tmp_path / "b", seen)
    assert not (tmp_path / "b/out").exists()
    monkeypatch.delenv("VIDBRIDGE_DEEPSPEED")
    monkeypatch.setenv("VIDBRIDGE_RANKS", "2")
    with pytest.raises(PlacementError, match="VIDBRIDGE_RANKS: 2 processes should train, 1 do"):
        sft(folder, examples, tmp_path / "c", seen)
    assert seen.metrics == []


def test_placement_reads_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "z.json"
    given.write_text('{"zero_optimization": {"stage": 3}}')
    assert placement({"VIDBRIDGE_RANKS": "3", "VIDBRIDGE_DEEPSPEED": str(given)}) == Placement(3, given, 3)
    with pytest.raises(PlacementError, match="VIDBRIDGE_RANKS: 'two'"):
        placement({"VIDBRIDGE_RANKS": "two"})
    with pytest.raises(PlacementError, match=r"VIDBRIDGE_DEEPSPEED: nowhere.json.*name a file like"):
        placement({"VIDBRIDGE_DEEPSPEED": "nowhere.json"})
    for text, fault in (("{", "VIDBRIDGE_DEEPSPEED"), ("{}", "names no zero_optimization.stage; name a file like")):
        given.write_text(text)
        with pytest.raises(PlacementError, match=fault):
            placement({"VIDBRIDGE_DEEPSPEED": str(given)})
    assert rank_environment(Placement(2, given, 3))["ACCELERATE_USE_DEEPSPEED"] == "true"
    monkeypatch.setenv("VIDBRIDGE_RANKS", "1")
    monkeypatch.delenv("VIDBRIDGE_DEEPSPEED", raising=False)
    assert launch("stages.sft.stage", ["x"]) is None


def test_share() -> None:
    assert share("x", 64, 64, 1) == (64, 1)
    assert share("x", 64, 64, 2) == (32, 1)
    assert share("x", 64, 8, 2) == (8, 4)
    with pytest.raises(ValueError, match="cannot be divided evenly among 3"):
        share("x", 64, 64, 3)
    with pytest.raises(ValueError, match="set one of 1, 2, 4, 8, 16"):
        share("x", 64, 24, 2)


def test_weights_that_would_not_be_saved_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((ROOT / "infra/deepspeed/zero3.json").read_text())
    path = tmp_path / "z.json"
    monkeypatch.setenv("VIDBRIDGE_DEEPSPEED", str(path))
    path.write_text(json.dumps(config))
    check_saving()
    del config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    path.write_text(json.dumps(config))
    with pytest.raises(
        PlacementError, match=r"VIDBRIDGE_DEEPSPEED: .*z.json: zero_optimization.stage3_gather.* set it to true"
    ):
        check_saving()
