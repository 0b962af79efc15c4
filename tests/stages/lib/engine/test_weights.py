"""Weights on their way to a rollout engine: whole or not at all, the last two, and never on a full
disk in silence."""

from __future__ import annotations

import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from stages.lib.engine import weights, wire
from stages.lib.engine.errors import WeightsError
from stages.lib.engine.weights import WeightsFolder, weights_root
from stages.lib.models.load import load_model, save_model
from tests.support.checkout import IN_CHECKOUT
from tests.support.training.tiny import tiny


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json"):
        (tmp_path / "model" / name).write_text("{}")
    return tmp_path / "model"


def save(folder: Path, size: int = 1000) -> None:
    save_file({"w": np.zeros(size, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"new": 1}')


def test_weights_appear_whole_and_the_last_two_are_kept(tmp_path: Path, model: Path) -> None:
    with WeightsFolder(tmp_path / "w", model) as folder:
        published = [folder.publish(f"grpo-{step}", save, 4000) for step in range(4)]
        assert len({each.name for each in published}) == 4
        assert folder.complete() == published[2:]
        assert sorted(path.name for path in folder.root.iterdir()) == sorted([p.name for p in published[2:]] + ["lock"])
        last = published[-1]
        assert wire.read_manifest(last.folder).name == last.name
        assert (last.folder / "config.json").read_text() == '{"new": 1}'
        assert (last.folder / "tokenizer.json").resolve() == model / "tokenizer.json"
        assert not (last.folder / "model.safetensors.index.json").exists(), "it would name other files"
        again = folder.publish("grpo-3", save, 4000)
        assert again.name != last.name, "an interrupted training's weights are not its continuation's"
    assert not folder.root.exists()


def test_a_published_folder_is_a_model(tmp_path: Path) -> None:
    net, processor = tiny("qwen2_vl")
    save_model(net, processor, tmp_path / "model")
    net.base_model.visual.merger.mlp[0].weight.data += 1
    with WeightsFolder(tmp_path / "w", tmp_path / "model") as folder:
        first = folder.publish("a", net.save_pretrained, 1)
        second = folder.publish("b", net.save_pretrained, 1)
        read, _ = load_model(second.folder, "fp32")
        # A published folder may itself be the model that an engine starts with.
        with WeightsFolder(tmp_path / "w2", first.folder) as of_published:
            third = of_published.publish("c", net.save_pretrained, 1)
            assert wire.read_manifest(third.folder).name == third.name
            assert wire.read_manifest(first.folder).name == first.name
    for name, weight in net.state_dict().items():
        assert torch.equal(read.state_dict()[name], weight), name


def test_what_an_interrupted_publisher_left_is_not_taken_for_weights(tmp_path: Path, model: Path) -> None:
    script = f"""
        import os
        from pathlib import Path
        from stages.lib.engine.weights import WeightsFolder
        folder = WeightsFolder(Path({str(tmp_path / "w")!r}), Path({str(model)!r}))
        def save(at):
            (at / "model.safetensors").write_bytes(b"xx")
        folder.publish("whole", save, 1)
        def half(at):
            save(at)
            os._exit(9)
        folder.publish("half", half, 1)
    """
    status = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, env=IN_CHECKOUT, check=False
    ).returncode
    assert status == 9
    (partial,) = (tmp_path / "w").glob("half*")
    with pytest.raises(wire.WireError, match="half-written"):
        wire.read_manifest(partial)
    with WeightsFolder(tmp_path / "w", model) as folder:
        assert not partial.exists()
        assert [each.name.split("-")[0] for each in folder.complete()] == ["whole"]
        (folder.complete()[0].folder / "model.safetensors").write_bytes(b"x")
        assert folder.complete() == []


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_weights_that_do_not_fit_are_an_error_and_leave_nothing(tmp_path: Path, model: Path) -> None:
    with WeightsFolder(tmp_path / "w", model) as folder:
        kept = [folder.publish(name, save, 4000) for name in ("a", "b")]
        with pytest.raises(
            WeightsError, match=r"VIDBRIDGE_ENGINE_WEIGHTS: .* GB free, and the weights are 1000000.0 GB"
        ):
            folder.publish("c", save, 10**15)
        # The size was underestimated: the write itself fails.
        with files_up_to(1000), pytest.raises(WeightsError, match=r"cannot be written into .*larger than"):
            folder.publish("d", lambda at: save(at, 100_000), 4000)
        assert folder.complete() == kept[1:], "the last one, which the engine may hold, stays"
        assert len(list(folder.root.iterdir())) == 2
        folder.publish("e", save, 4000)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the always-full device")
def test_a_full_disk_is_told_with_a_remedy(tmp_path: Path, model: Path) -> None:
    with WeightsFolder(tmp_path / "w", model) as folder:

        def onto_full(at: Path) -> None:
            (at / "model.safetensors").symlink_to("/dev/full")
            (at / "model.safetensors").write_bytes(b"x")

        with pytest.raises(WeightsError, match=r"the disk is full.*free some space"):
            folder.publish("a", onto_full, 1)
        assert folder.complete() == []


def test_a_folder_is_of_one_training(tmp_path: Path, model: Path) -> None:
    with WeightsFolder(tmp_path / "w", model) as folder:
        with pytest.raises(WeightsError, match="in use by another training"):
            WeightsFolder(tmp_path / "w", model)
        with pytest.raises(ValueError, match="label"):
            folder.publish("../x", save, 1)
        assert folder.publish("a", save, 1).folder.is_dir()


def test_the_folder_is_in_memory_if_the_weights_fit(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(weights, "_IN_MEMORY", memory)
    a, b = tmp_path / "a", tmp_path / "b"
    root = weights_root(a, 1000, environ={})
    assert root.is_relative_to(memory)
    assert root == weights_root(a, 1000, environ={})
    assert root != weights_root(b, 1000, environ={})
    assert weights_root(a, 10**15, environ={}) == a / "weights"
    assert weights_root(a, 1, environ={"VIDBRIDGE_ENGINE_WEIGHTS": str(b)}).parent == b
    # What killed trainings left is removed, and nothing of those that run.
    folder = WeightsFolder(root, model)
    left = WeightsFolder(root.with_name("left"), model)
    weights.os.close(left._lock)
    weights_root(b, 1000, environ={})
    assert folder.root.exists()
    assert not left.root.exists()
    folder.close()
