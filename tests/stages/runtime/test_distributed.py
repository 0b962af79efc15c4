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
from stages.runtime.ranks.distributed import check_saving, launch, rank_environment, share
from stages.runtime.ranks.placement import Placement, PlacementError, placement
from stages.sft.long_rows import share_of
from tests.support.checkout import ROOT
from tests.support.training.compared import furthest, history
from tests.support.training.tiny import LORA, Seen, sft_row, tiny
from tests.support.training.trainers import grpo, sft
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
    "full-shard": "torch.distributed.fsdp.FSDPModule",
}
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed is installed on Linux only")


def config(name: str) -> str:
    return str(ROOT / f"infra/deepspeed/{name}.json")


def engine(name: str | None) -> dict[str, str]:
    """Variable of an engine, by the name of its file."""
    if name is None:
        return {}
    fsdp = str(ROOT / f"infra/fsdp/{name}.json")
    return {"VIDBRIDGE_FSDP": fsdp} if Path(fsdp).exists() else {"VIDBRIDGE_DEEPSPEED": config(name)}


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
        PlacementError, match=r"interrupted with DeepSpeed on 2 processes and cannot go on with neither .*; set them"
    ):
        sft(folder, examples, tmp_path / "sft", seen, steps=4)


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero3", "full-shard"])
def test_processes_agree_on_each_pass_through_a_frozen_tower(folder: Path, tmp_path: Path, name: str) -> None:
    """One that remembers a video while another has to see it again would wait for weights that the
    other is not gathering."""
    told = start("two_ranks", tmp_path, 4, "frozen", ranks=2, **engine(name))
    assert told["grpo"]["engine"] == ENGINES[name]
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


ROWS = ("sft", "grpo", "off-policy")


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize("name", [None, "zero2", "zero3", "zero3-offload", "full-shard"])
def test_two_processes_take_the_steps_of_one(name: str | None, alone: Path, tmp_path: Path) -> None:
    """SFT and GRPO: losses, gradient norms and weights, whatever the engine; and resumed midway, as
    if never interrupted.

    Float32; measured: losses differ by up to 5e-7, gradient norms by 1e-6 of themselves, weights by
    8e-6 where they moved by 2e-3 or more.
    """
    # Adapters are restored in another way where the weights are sharded.
    rows = (*ROWS, "lora") if name == "full-shard" else ROWS
    told = start("trajectory", tmp_path, alone / "shared", *rows, ranks=2, **engine(name))
    for row in rows:
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
def test_processes_that_share_rows_take_the_steps_of_one(alone: Path, tmp_path: Path) -> None:
    """Each holds half of the tokens and frames of a row; saved and resumed as ever."""
    told = start("trajectory", tmp_path, alone / "shared", "sft", ranks=2, VIDBRIDGE_SEQUENCE_RANKS="2")
    theirs = alone / "one/sft/out"
    for row in ("sft", "sft-resumed"):
        mine = tmp_path / row / "out"
        assert history(mine) == [pytest.approx(step, rel=1e-5, abs=2e-6) for step in history(theirs)]
        assert furthest(mine / "final", theirs / "final") < 3e-5
    assert told["sft-resumed"]["resumed_from"] == 2


@pytest.mark.slow
def test_a_shared_row_is_the_row_of_one(tmp_path: Path) -> None:
    """Log-probabilities and gradients of the three families, Qwen3-VL's tapped layers among them;
    and what a process keeps for the backward pass of 64 frames.

    Measured: log-probabilities equal, gradients to 4e-7 of the largest, .51 to .52 of the bytes a
    process.
    """
    told = start("shared_rows", tmp_path, ranks=2, VIDBRIDGE_SEQUENCE_RANKS="2")
    assert len(told) == 3
    for rows in told.values():
        for row in rows.values():
            assert row["scored"] > 0
            # The last tapped layer goes to the last one of the text, at tokens not scored.
            assert all("deepstack_merger_list.1" in name for name in row["untouched"])
            assert row["logps"] < 1e-6
            assert row["gradients"] < 3e-6
        whole, *shared = rows["long"]["kept_bytes"]
        assert rows["long"]["tokens"] > 500
        assert all(own < 0.55 * whole for own in shared)


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


def test_sharded_weights_and_shared_rows_are_read_from_the_environment(tmp_path: Path) -> None:
    given = tmp_path / "f.json"
    given.write_text("{}")
    found = placement({"VIDBRIDGE_RANKS": "4", "VIDBRIDGE_FSDP": str(given), "VIDBRIDGE_SEQUENCE_RANKS": "2"})
    assert (found.engine, found.zero_stage, found.sequence) == (given, 0, 2)
    for text, fault in (
        ("{", "VIDBRIDGE_FSDP: .*; name a file like infra/fsdp/full-shard.json"),
        ("[]", "VIDBRIDGE_FSDP: .*; name a file like infra/fsdp/full-shard.json"),
        ('{"version": 1}', "version 1, and 2 alone is supported"),
        ('{"state_dict_type": "SHARDED_STATE_DICT"}', "SHARDED_STATE_DICT saves no model that can be opened"),
        ('{"cpu_offload": true}', "cpu_offload pins memory, .*; set it to false, or use .*zero3-offload.json"),
        ('{"cpu_ram_efficient_loading": true}', "cpu_ram_efficient_loading .* set it to false"),
    ):
        given.write_text(text)
        with pytest.raises(PlacementError, match=fault):
            placement({"VIDBRIDGE_FSDP": str(given)})
    with pytest.raises(PlacementError, match="VIDBRIDGE_DEEPSPEED, VIDBRIDGE_FSDP: both are set; unset one of them"):
        placement({"VIDBRIDGE_FSDP": str(given), "VIDBRIDGE_DEEPSPEED": config("zero2")})
    for value, fault in (("two", "'two' is not a number"), ("3", "3 processes .* and 4 train .*; set a divisor of 4")):
        with pytest.raises(PlacementError, match=f"VIDBRIDGE_SEQUENCE_RANKS: {fault}"):
            placement({"VIDBRIDGE_RANKS": "4", "VIDBRIDGE_SEQUENCE_RANKS": value})
    for path in (ROOT / "infra/fsdp").iterdir():
        assert placement({"VIDBRIDGE_FSDP": str(path)}).fsdp == path


def test_what_cannot_be_shared_is_refused(
    folder: Path, examples: list[Example], tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDBRIDGE_RANKS", "3")
    monkeypatch.setenv("VIDBRIDGE_SEQUENCE_RANKS", "3")
    model, _ = tiny("qwen2_5_vl")
    with pytest.raises(
        PlacementError, match=r"3 processes, and the model has 2 heads, 1 of keys, .* set a divisor of 2"
    ):
        share_of(model, sft_row(), packed=True)
    monkeypatch.setenv("VIDBRIDGE_RANKS", "2")
    monkeypatch.setenv("VIDBRIDGE_SEQUENCE_RANKS", "2")
    with pytest.raises(PlacementError, match="padded rows cannot be shared"):
        share_of(model, sft_row(), packed=False)
    with pytest.raises(PlacementError, match=r"lora.dropout 0.1: .* set dropout 0.0, or unset the variable"):
        share_of(model, sft_row(lora={**LORA, "dropout": 0.1}), packed=True)
    with pytest.raises(PlacementError, match=r"VIDBRIDGE_SEQUENCE_RANKS: 2 .* in GRPO each .*; unset it for grpo rows"):
        grpo(folder, examples, tmp_path, seen)


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
