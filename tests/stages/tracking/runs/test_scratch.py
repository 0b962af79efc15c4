"""Resuming a training: only the declaration of its stage in ``dvc.yaml`` decides which checkpoints
fit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stages.tracking.lineage.uri import TrackingError
from stages.tracking.runs.scratch import scratch_of

PIPELINE = """
stages:
  sft:
    foreach: ${sft}
    do:
      cmd: python -m stages sft ${key}
      deps: ["${source}", data/clips, "models/${item.init}", stages/sft/stage.py, stages/lib/video]
      params: [seed, "sft.${key}"]
"""
PARAMS = (
    "seed: 1\nsource: data/mine\nsft: {short: {init: base, steps: 2}, long: {init: base, steps: 9}}\njudge: {kind:"
    " rule}\n"
)
LOCK = """
schema: '2.0'
stages:
  ingest:
    cmd: python -m stages ingest
    deps: [{path: data/mine, hash: md5, md5: aa.dir}]
    outs: [{path: data/clips, hash: md5, md5: bb.dir}]
  base:
    cmd: python -m stages base
    outs: [{path: models/base, hash: md5, md5: cc.dir}]
  sft@short:
    cmd: python -m stages sft short
    deps: [{path: data/mine, hash: md5, md5: before.dir}]
    outs: [{path: models/short, hash: md5, md5: dd.dir}]
"""
FILES = {
    "dvc.yaml": PIPELINE,
    "params.yaml": PARAMS,
    "dvc.lock": LOCK,
    "stages/sft/stage.py": '"""Trains."""\n\nRATE = 1  # of learning\n',
    "stages/lib/video/reader.py": "FPS = 25\n",
    "stages/lib/pages.py": "COLOUR = 'red'\n",
    "data/mine/a.mp4": "video",
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("VIDBRIDGE_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("RANK", raising=False)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train() -> Path:
    """Save a checkpoint and be interrupted. Returns the checkpoint."""
    with scratch_of("sft@short") as scratch:
        (scratch.folder / "checkpoint-2").touch()
        return scratch.folder / "checkpoint-2"


def resumed() -> Path | None:
    """The checkpoint that the next run finds."""
    with scratch_of("sft@short") as scratch:
        found = scratch.folder / "checkpoint-2"
        return found if found.exists() else None


def edit(name: str, old: str, new: str) -> None:
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("stages/sft/stage.py", "RATE = 1", "RATE = 2"), ("stages/lib/video/reader.py", "25", "30")],
)
def test_code_that_dvc_yaml_lists_drops_the_checkpoints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, old: str, new: str
) -> None:
    saved = train()
    edit(name, old, new)
    monkeypatch.setenv("VIDBRIDGE_RESUME_ACROSS_CODE", "1")
    assert resumed() == saved, "where a person says so"
    edit(name, new, old)
    monkeypatch.delenv("VIDBRIDGE_RESUME_ACROSS_CODE")
    assert resumed() is None, "the code was another one meanwhile"
    assert "sft@short: the code changed since the checkpoints in" in capsys.readouterr().err
    train()
    edit(name, old, new)
    assert resumed() is None


def test_a_part_of_an_out_has_the_hash_of_that_out(project: Path) -> None:
    """Its files may be checked out anew, with other times, while the training is interrupted."""
    edit("dvc.yaml", "data/clips,", "data/clips/validation,")
    rows = project / "data/clips/validation/rows.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text("{}")
    saved = train()
    os.utime(rows, ns=(1, 1))
    assert resumed() == saved
    edit("dvc.lock", "bb.dir", "other.dir")
    assert resumed() is None


def test_a_new_module_in_a_folder_that_is_listed_drops_them() -> None:
    train()
    Path("stages/lib/video/times.py").write_text("NOW = 1\n")
    assert resumed() is None


def test_what_changes_no_result_keeps_them() -> None:
    saved = train()
    edit("stages/sft/stage.py", "# of learning", "# of forgetting")
    edit("stages/sft/stage.py", "Trains.", "Train the policy.")
    edit("stages/lib/pages.py", "red", "blue")
    edit("params.yaml", "kind: rule", "kind: openai")
    edit("params.yaml", "steps: 9", "steps: 10")
    Path("stages/lib/video/reader.py").rename("stages/lib/video/read.py")
    assert resumed() == saved


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("params.yaml", "seed: 1", "seed: 2"),
        ("params.yaml", "steps: 2", "steps: 3"),
        ("dvc.lock", "bb.dir", "b2.dir"),
        ("dvc.lock", "cc.dir", "c2.dir"),
        ("dvc.lock", "aa.dir", "a2.dir"),
        ("dvc.yaml", "python -m stages sft ${key}", "python -m stages sft --quickly ${key}"),
    ],
)
def test_parameters_and_inputs_that_dvc_yaml_lists_have_a_folder_of_their_own(name: str, old: str, new: str) -> None:
    saved = train()
    edit(name, old, new)
    assert resumed() is None
    edit(name, new, old)
    assert resumed() == saved


def test_a_source_of_ones_own_is_the_one_that_ingest_saw() -> None:
    # Until this stage has run again, dvc.lock holds its former inputs.
    saved = train()
    edit("dvc.lock", "before.dir", "aa.dir")
    Path("data/mine/b.mp4").touch()
    assert resumed() == saved


def test_what_dvc_lock_does_not_tell_is_looked_at() -> None:
    Path("dvc.lock").unlink()
    for name in ("data/clips/manifest.jsonl", "models/base/final/model.safetensors"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text("first")
    saved = train()
    assert resumed() == saved
    Path("models/base/final/model.safetensors").write_text("second one")
    assert resumed() is None


@pytest.mark.timeout(30)
def test_other_ranks_use_the_folder_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "12345", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with scratch_of("sft@short") as first:
        monkeypatch.setenv("RANK", "1")
        with scratch_of("sft@short") as other:
            assert (other.folder, other.lease) == (first.folder, None)


def test_a_stage_that_dvc_yaml_does_not_have_is_refused() -> None:
    with (
        pytest.raises(TrackingError, match=r"stages: 'grpo' is not among them \(sft\); add it"),
        scratch_of("grpo@bridge"),
    ):
        pass
    assert not Path(".vidbridge").exists()
