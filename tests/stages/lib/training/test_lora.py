"""Adapters change their targets and nothing else, and the saved model is an ordinary one with the
same outputs."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import PreTrainedModel

from flows.params_file.recipes import smoke_version
from flows.processes.environment import RECIPES
from stages.lib.models.load import load_model, save_model
from stages.lib.models.processor import encode_prompts, join_videos, modality_of
from stages.lib.models.settings import plain_model
from stages.lib.training.lora import adapters, load_adapters, merged, save_merged
from stages.lib.training.mixture import Example
from stages.params import GrpoRow, LoraParams, parse_params
from tests.support.checkout import ROOT
from tests.support.training.tiny import LORA, Seen, tinted, tiny
from tests.support.training.trainers import grpo, sft

VISION = ["visual.qkv", "visual.proj"]


def adapted(model: PreTrainedModel, **changes: Any) -> PeftModel:
    return get_peft_model(model, adapters(model, LoraParams.model_validate({**LORA, **changes})))


def logits(model: Any, processor: Any) -> torch.Tensor:
    """Of a prompt about a video."""
    (prompt,) = encode_prompts(processor, [("What colour is number 1?", (tinted(1, 1),))])
    ids = torch.tensor([prompt.ids])
    with torch.no_grad():
        seen: torch.Tensor = model.eval()(
            input_ids=ids, mm_token_type_ids=modality_of(ids, processor), **join_videos([prompt.videos], "cpu")
        ).logits
    return seen


def randomise(model: PeftModel) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.requires_grad:
                weights.add_(torch.randn_like(weights) * 0.1)


def moved(before: Path, after: Path) -> set[str]:
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    new = {
        name: tensor for name, tensor in new.items() if name in old or name != "lm_head.weight"
    }  # DeepSpeed writes a tied one twice
    assert old.keys() == new.keys(), "an ordinary model: the names of the published weights, and none of an adapter"
    return {name for name in old if not torch.equal(old[name], new[name])}


def matrices_of(folder: Path, targets: Sequence[str]) -> set[str]:
    names = load_file(folder / "model.safetensors")
    return {
        name for name in names if "visual" not in name and any(name.endswith(f".{target}.weight") for target in targets)
    }


def test_only_the_targets_move_and_the_folder_says_what_the_adapters_say(
    family: str, examples: list[Example], tmp_path: Path
) -> None:
    base, processor = tiny(family)
    save_model(base, processor, tmp_path / "base")
    few = LORA | {"targets": ["q_proj", "down_proj"]}
    plain = sum(weights.numel() for weights in base.parameters())
    home = tmp_path / "sft"
    told = sft(tmp_path / "base", examples, home, Seen(), steps=2, lora=few)
    assert moved(tmp_path / "base", home / "out/final") == matrices_of(tmp_path / "base", few["targets"])
    assert (told["parameters"], told["trained_parameters"]) == (plain, 2 * 4 * (64 + 64 + 64 + 64)), (
        "two layers, rank 4"
    )
    assert [path for path in (home / "out").rglob("*") if "adapter" in path.name] == []

    seen = Seen()
    told = grpo(
        home / "out/final",
        examples,
        tmp_path / "grpo",
        seen,
        steps=2,
        warmup_steps=0,
        max_completion_tokens=3,
        lora=LORA,
        beta=0.05,
        iterations=2,
        loss="grpo",
        completions_per_device=16,
    )
    assert moved(home / "out/final", tmp_path / "grpo/out/final") == matrices_of(tmp_path / "base", LORA["targets"])
    logged = dict(seen.metrics)
    assert logged[1]["kl"] == pytest.approx(0, abs=1e-6), "fresh adapters are the reference"
    assert logged[2]["kl"] > 1e-6

    # PEFT's own way of putting the saved adapters on the start model, against the exported folder.
    model, processor = load_model(home / "out/final", "fp32")
    start = logits(model, processor)
    attached = PeftModel.from_pretrained(model, str(tmp_path / "grpo/scratch/state/checkpoint-2"))
    exported = load_model(tmp_path / "grpo/out/final", "fp32")[0]
    assert torch.allclose(logits(attached, processor), logits(exported, processor), atol=1e-5)
    assert not torch.allclose(start, logits(exported, processor), atol=1e-4)


def test_gradient_checkpointing_trains_adapters(folder: Path, examples: list[Example], tmp_path: Path) -> None:
    for name, checkpointing in (("plain", False), ("checkpointed", True)):
        sft(folder, examples, tmp_path / name, Seen(), steps=2, lora=LORA, gradient_checkpointing=checkpointing)
    plain, checkpointed = (
        load_file(tmp_path / name / "out/final/model.safetensors") for name in ("plain", "checkpointed")
    )
    assert max(float((plain[name] - checkpointed[name]).abs().max()) for name in plain) < 1e-6
    assert moved(folder, tmp_path / "checkpointed/out/final") == matrices_of(folder, LORA["targets"])


@pytest.mark.parametrize("targets", [LORA["targets"], [*VISION, "q_proj"]], ids=["text", "vision"])
def test_targets_stay_in_their_tower_and_fresh_adapters_change_nothing(
    family: str, tmp_path: Path, targets: list[str]
) -> None:
    base, processor = tiny(family)
    start = logits(base, processor)
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = adapted(base, targets=targets)
    hit = {name for name, module in plain_model(model).named_modules() if hasattr(module, "lora_A")}
    assert any("visual" in name for name in hit) == any(target.startswith("visual.") for target in targets)
    assert {name.rpartition(".")[2] for name in hit} == {target.removeprefix("visual.") for target in targets}
    layers = {"language_model": 2, "visual": 2}
    assert len(hit) == sum(layers["visual" if target.startswith("visual.") else "language_model"] for target in targets)
    assert torch.equal(logits(model, processor), start)

    randomise(model)
    save_merged(model, model.state_dict(), tmp_path / "merged")
    processor.save_pretrained(tmp_path / "merged")
    loaded, _ = load_model(tmp_path / "merged", "fp32")
    assert torch.allclose(logits(loaded, processor), logits(model, processor), atol=2e-5)
    assert not torch.allclose(logits(model, processor), start, atol=1e-2)
    with model.disable_adapter():
        assert torch.equal(logits(model, processor), start), "merged was a copy: the frozen weights are what they were"
    frozen = plain_model(model).state_dict()
    assert [
        name
        for name, tensor in weights.items()
        if name in frozen and not torch.equal(tensor, frozen[name.replace("base_layer.", "")])
    ] == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "q_porj",
            (
                r"lora.targets: 'q_porj' is not a linear layer of this model; choose among down_proj, gate_proj,"
                r" k_proj, .*visual.qkv"
            ),
        ),
        ("proj", r"lora.targets: 'proj' is not a linear layer"),  # of the vision tower only, and no part of `q_proj`
        ("lm_head", r"lora.targets: 'lm_head' is not a linear layer"),
        ("visual.q_proj", r"lora.targets: 'visual.q_proj' is not a linear layer"),
    ],
)
def test_a_target_that_is_not_there(target: str, message: str) -> None:
    model, _ = tiny("qwen2_5_vl")
    with pytest.raises(ValueError, match=message):
        adapters(model, LoraParams.model_validate(LORA | {"targets": ["q_proj", target]}))


def test_training_refuses_a_target_that_is_not_there(
    folder: Path, examples: list[Example], tmp_path: Path, seen: Seen
) -> None:
    for train in (sft, grpo):
        with pytest.raises(ValueError, match=r"lora.targets: 'wq' is not a linear layer"):
            train(folder, examples, tmp_path, seen, lora=LORA | {"targets": ["wq"]})


def test_rows_that_contradict_themselves(folder: Path, examples: list[Example], tmp_path: Path, seen: Seen) -> None:
    with pytest.raises(
        ValueError, match=r"lora.targets: 'visual.qkv' is in the vision tower, which `freeze` takes out"
    ):
        sft(folder, examples, tmp_path, seen, freeze=["vision"], lora=LORA | {"targets": VISION})
    with pytest.raises(ValueError, match=r"lora.dropout: 0.1 would sample rollouts from one thinned-out policy"):
        grpo(folder, examples, tmp_path, seen, lora=LORA | {"dropout": 0.1})


def test_adapters_of_another_row_are_not_resumed_from(tmp_path: Path) -> None:
    model, other = (adapted(tiny("qwen2_5_vl")[0], targets=[target]) for target in ("q_proj", "v_proj"))
    other.save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="holds adapters of another model or row"):
        load_adapters(model, tmp_path)


def state_of(precision: torch.dtype, size: float) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A layer's frozen weights and bias with adapters that change them by about ``size``, and what
    comes of it, exactly."""
    torch.manual_seed(3)
    weight, up, down = torch.randn(8, 6).to(precision), torch.randn(8, 2) * size, torch.randn(2, 6)
    layer = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    state = {
        f"{layer}.base_layer.weight": weight,
        f"{layer}.base_layer.bias": torch.ones(8),
        f"{layer}.lora_A.default.weight": down,
        f"{layer}.lora_B.default.weight": up,
        "base_model.model.lm_head.weight": torch.ones(3),
    }
    return state, weight.double() + 2.0 * up.double() @ down.double()


def test_merging_rounds_once_and_knows_what_that_took() -> None:
    for precision, size, least, most in (
        (torch.float32, 1e-5, 0.0, 1e-6),
        (torch.bfloat16, 1e-1, 1e-3, 0.1),
        (torch.bfloat16, 1e-5, 0.9, 1.001),
    ):
        state, exact = state_of(precision, size)
        weights, lost = merged(state, 2.0)
        layer = "model.language_model.layers.0.self_attn.q_proj"
        assert weights.keys() == {f"{layer}.weight", f"{layer}.bias", "lm_head.weight"}
        assert weights[f"{layer}.weight"].dtype == precision
        assert torch.allclose(
            weights[f"{layer}.weight"].double(), exact, rtol=2**-8 if precision == torch.bfloat16 else 1e-6
        )
        assert least <= lost <= most, (precision, size, lost)


def test_a_policy_that_rounding_takes_away_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = adapted(tiny("qwen2_5_vl")[0].to(torch.bfloat16))
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.fill_(1e-6)
    with caplog.at_level(logging.WARNING):
        save_merged(model, model.state_dict(), tmp_path / "checkpoint-9")
    assert "checkpoint-9: rounding to the weights' precision lost" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed is installed on Linux only")
@pytest.mark.parametrize("name", ["", "zero2", "zero3", "full-shard"])
def test_adapters_train_on_two_ranks(folder: Path, tmp_path: Path, name: str) -> None:
    stage = int(name[4]) if name.startswith("zero") else 0
    engine = "VIDBRIDGE_FSDP" if name == "full-shard" else "VIDBRIDGE_DEEPSPEED"
    config = str(next((ROOT / "infra").glob(f"*/{name}.json"))) if name else ""
    few = LORA | {"targets": ["q_proj", "down_proj"]}
    ranks = {"VIDBRIDGE_RANKS": "2", engine: config, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.support.training.two_ranks", str(tmp_path), "2", json.dumps(few)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **ranks},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    told = json.loads((tmp_path / "told.json").read_text())
    start = folder
    for row in ("sft", "grpo"):
        assert told[row]["deepspeed_stage"] == stage
        assert told[row]["parameters"] == sum(
            weights.numel() for weights in load_file(folder / "model.safetensors").values()
        )
        assert told[row]["trained_parameters"] == 2 * 4 * (64 + 64 + 64 + 64)
        final = tmp_path / row / "out/final"
        assert moved(start, final) == matrices_of(folder, few["targets"])
        # Gathered from both processes and merged here, against PEFT's way of putting the saved
        # adapters on the start model.
        model, processor = load_model(start, "fp32")
        attached = PeftModel.from_pretrained(model, str(tmp_path / row / "scratch/state/checkpoint-2"))
        assert torch.allclose(logits(attached, processor), logits(load_model(final, "fp32")[0], processor), atol=1e-5)
        start = final
    first = next(values for values in told["metrics"] if "kl" in values)
    assert first["kl"] == pytest.approx(0, abs=1e-6), "fresh adapters are the reference"


def test_a_recipe_in_small_keeps_its_adapters(tmp_path: Path) -> None:
    shutil.copytree(ROOT / RECIPES, tmp_path / RECIPES)
    path = tmp_path / RECIPES / "vidbridge-r1.yaml"
    lora = LORA | {"rank": 64, "alpha": 128, "targets": [*LORA["targets"], *VISION]}
    table = yaml.safe_load(path.read_text())
    table["grpo"]["mixed"]["lora"] = lora
    path.write_text(yaml.safe_dump(table))
    row = parse_params(yaml.safe_load(smoke_version(tmp_path, "vidbridge-r1"))).rows["mixed"]
    assert isinstance(row, GrpoRow)
    assert row.lora == LoraParams.model_validate(lora)
    for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        adapters(tiny(family)[0], row.lora)
