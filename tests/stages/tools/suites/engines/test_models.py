"""Models that an evaluation is given: which can be asked, and why the others cannot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stages.params import Params
from stages.tools.suites.engines.models import select_model
from stages.tools.suites.engines.questions import EngineError
from stages.tracking.session import Session


def test_models_that_cannot_be_asked(root: Path, params: Params, taught: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(taught, bare)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"):
        (bare / name).unlink(missing_ok=True)
    with pytest.raises(EngineError, match=r"a checkpoint without a processor \(preprocessor_config.json is missing\)"):
        select_model(Session(root), params, str(bare), None)
    (bare / "config.json").unlink()
    with pytest.raises(EngineError, match="holds no model"):
        select_model(Session(root), params, str(bare), None)
    with pytest.raises(EngineError, match="is not a folder"):
        select_model(Session(root), params, str(tmp_path / "nowhere"), None)
    with pytest.raises(EngineError, match="--revision: not set"):
        select_model(Session(root), params, "Qwen/Qwen2.5-VL-7B-Instruct", None)
    for which in (str(taught), "champion", "models:/m/3"):
        with pytest.raises(EngineError, match="--revision: means nothing for"):
            select_model(Session(root), params, which, "0" * 40)
    with pytest.raises(EngineError, match="pass the commit, 40 hex digits"):
        select_model(Session(root), params, "Qwen/Qwen2.5-VL-7B-Instruct", "main")
    with pytest.raises(EngineError, match="is not a folder with a model, a version or a hub id"):
        select_model(Session(root), params, "models/base/final", None)
    with pytest.raises(EngineError, match="write models:/NAME@champion"):
        select_model(Session(root), params, "models:/", None)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("chat_template.jinja", None, r"a checkpoint without a whole processor \(chat_template.jinja is missing"),
        ("tokenizer.json", None, r"a checkpoint without a whole processor \(tokenizer.json is missing"),
        ("model.safetensors", None, r"model: holds no weights \(\*\.safetensors\); copy the folder again"),
        ("model.safetensors", b"\x10" * 100, "cannot be loaded, a file is missing or damaged"),
        ("config.json", b"{", r"config\.json is not JSON \(JSONDecodeError\); copy the folder again"),
    ],
)
def test_a_model_that_lacks_a_file_says_which_before_anything_is_asked(
    root: Path, params: Params, taught: Path, tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    shutil.copytree(taught, tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    if content is not None:
        (tmp_path / "model" / name).write_bytes(content)
    with pytest.raises(EngineError, match=says):
        select_model(Session(root), params, str(tmp_path / "model"), None).load()


def test_a_hub_model_that_is_not_here(root: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    chosen = select_model(Session(root), params, "nobody/has-this-model", "0" * 40)
    assert chosen.identity == {"weights": f"nobody/has-this-model@{'0' * 40}", "max_pixels_per_frame": "153664"}
    with pytest.raises(
        EngineError,
        match=r"--model: 'nobody/has-this-model' at --revision '0+' cannot be loaded; HF_HUB_OFFLINE is set",
    ):
        chosen.load()
