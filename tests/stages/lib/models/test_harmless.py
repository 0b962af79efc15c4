"""A model folder is data: code, pickles and questions about either are refused in one sentence."""

from __future__ import annotations

import json
import os
import pty
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.domain.core.frames import Fit, Shrink
from stages.lib.models.load import ModelUnavailableError, load_model, load_pretrained, save_model
from stages.lib.models.resizing import fit_of, shrink_of
from stages.lib.training.lora import load_adapters
from tests.support.training.tiny import tiny

CODE = """
from pathlib import Path
from transformers import PretrainedConfig
Path({mark!r}).write_text("ran")
class Config(PretrainedConfig):
    model_type = "evil"
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(*tiny("qwen2_5_vl"), folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")


def code(folder: Path) -> None:
    (folder / "code.py").write_text(CODE.format(mark=str(folder / "mark")))
    edit(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "code.Config"})


def listed(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        torch.save({"weight": torch.zeros(1)}, folder / "part.bin")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": part}}))

    return change


def no_table(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def processor_code(folder: Path) -> None:
    (folder / "code.py").write_text(CODE.format(mark=str(folder / "mark")))
    edit(folder / "processor_config.json", processor_class="Evil", auto_map={"AutoProcessor": "code.Config"})
    edit(
        folder / "tokenizer_config.json",
        processor_class="Evil",
        tokenizer_class="Evil",
        auto_map={"AutoProcessor": "code.Config"},
    )


def video_processor_code(folder: Path) -> None:
    (folder / "code.py").write_text(CODE.format(mark=str(folder / "mark")))
    config = json.loads((folder / "processor_config.json").read_text())
    config["video_processor"] |= {"video_processor_type": "Evil", "auto_map": {"AutoVideoProcessor": "code.Config"}}
    (folder / "processor_config.json").write_text(json.dumps(config))


BAD = [
    (
        pickled,
        "its weights are pickled (pytorch_model.bin), which can run code, and only safetensors are read; convert them",
    ),
    (code, "config.json: model_type 'evil' is unknown to transformers"),
    (listed("part.bin"), "model.safetensors.index.json: 'part.bin' is not a safetensors file of the folder"),
    (listed("../other.safetensors"), "'../other.safetensors' is not a safetensors file of the folder"),
    (no_table, "config.json is not JSON (RecursionError); copy the folder again"),
]


@pytest.mark.parametrize(
    ("damage", "sentence"), BAD, ids=["pickle", "code", "pickle-part", "part-elsewhere", "brackets"]
)
def test_what_could_run_code_is_one_sentence(folder: Path, damage: Callable[[Path], None], sentence: str) -> None:
    damage(folder)
    for load in (lambda: load_model(folder, "fp32"), lambda: load_pretrained(str(folder), "x", "fp32", 10**6)):
        with pytest.raises(ModelUnavailableError) as refused:
            load()
        assert sentence in str(refused.value)
        assert "\n" not in str(refused.value)
    assert not (folder / "mark").exists()


@pytest.mark.parametrize("damage", [code, processor_code])
def test_nobody_is_asked_on_a_terminal(
    folder: Path, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers prompts "Do you wish to run the custom code? [y/N]" where trust_remote_code is
    left out; y ran it."""
    damage(folder)
    main, terminal = pty.openpty()
    os.write(main, b"y\ny\ny\n")
    with os.fdopen(terminal) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(
            ModelUnavailableError, match=r"is unknown to transformers|needs code of its own, which is not run"
        ):
            load_model(folder, "fp32")
    os.close(main)
    assert not (folder / "mark").exists()


@pytest.mark.parametrize("resize", [fit_of, shrink_of])
def test_nobody_is_asked_for_a_resize(
    folder: Path, resize: Callable[[Path], Fit | Shrink], monkeypatch: pytest.MonkeyPatch
) -> None:
    video_processor_code(folder)
    main, terminal = pty.openpty()
    os.write(main, b"y\ny\ny\n")
    with os.fdopen(terminal) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(ValueError, match="trust_remote_code"):
            resize(folder)
    os.close(main)
    assert not (folder / "mark").exists()


def test_adapters_are_no_pickle(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"holds no adapter_model\.safetensors, and nothing else is read"):
        load_adapters(tiny("qwen2_5_vl")[0], tmp_path)  # type: ignore[arg-type]
