"""Saved and published checkpoints agree, for any change of the folder in between. Files only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from stages.lib.training import checkpoints
from stages.lib.training.checkpoints import CheckpointGone, Saved
from stages.runtime.leases import lease


def save(scratch: Path, step: int, known: Saved) -> Saved:
    """Save as the trainer does at ``step``."""
    state = scratch / f"state/checkpoint-{step}"
    state.mkdir(parents=True)
    (state / "model.safetensors").write_bytes(bytes(step))
    (state / "config.json").write_text("{}")
    (state / "optimizer.pt").write_bytes(b"moments")
    (state / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": step, "loss": 1.0}]}))
    checkpoints.check_saved(scratch / "saved", known)
    known = checkpoints.note_saved(state, known)
    checkpoints.seal(state)
    checkpoints.export(state, scratch / "saved", checkpoints.record_of(state, "sft@cold-start", 6))
    return known


@pytest.fixture
def known(tmp_path: Path) -> Saved:
    return save(tmp_path, 4, save(tmp_path, 2, {}))


def test_a_state_knows_all_that_was_saved_before_it(tmp_path: Path, known: Saved) -> None:
    state = checkpoints.newest_whole(tmp_path / "state")
    assert state is not None
    assert (
        checkpoints.read_saved(state)
        == known
        == {2: {"config.json": 2, "model.safetensors": 2}, 4: {"config.json": 2, "model.safetensors": 4}}
    )
    known = save(tmp_path, 6, known)
    records = checkpoints.publish(tmp_path / "saved", tmp_path / "state/checkpoint-6", tmp_path / "out", {}, known, 6)
    assert [record.path for record in records] == ["checkpoint-2", "checkpoint-4", "final"]
    assert not list((tmp_path / "out").rglob("saved.json")), "the list is the trainer's"


@pytest.mark.parametrize("gone", ["checkpoint-2", "checkpoint-2.json", "checkpoint-2/model.safetensors"])
def test_the_next_save_and_the_end_see_that_one_is_gone(tmp_path: Path, known: Saved, gone: str) -> None:
    path = tmp_path / "saved" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    said = (
        r"checkpoint 2: it was saved by this training and is gone from .*saved \(checkpoint-2.*\); .*"
        r"vidbridge scratch clean"
    )
    with pytest.raises(CheckpointGone, match=said):
        save(tmp_path, 6, known)
    with pytest.raises(CheckpointGone, match=said):
        checkpoints.publish(tmp_path / "saved", tmp_path / "state/checkpoint-4", tmp_path / "out", {}, known, 4)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_was_cut_short_is_gone_as_well(tmp_path: Path, known: Saved) -> None:
    path = tmp_path / "saved/checkpoint-4/model.safetensors"
    path.unlink()
    path.write_bytes(b"abc")
    with pytest.raises(CheckpointGone, match="checkpoint 4: it was saved by this training"):
        checkpoints.check_saved(tmp_path / "saved", known)


def test_the_last_state_may_be_what_is_gone(tmp_path: Path, known: Saved) -> None:
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(
        CheckpointGone,
        match=r"checkpoint 4: it was saved by this training and is gone from .*state \(checkpoint-4/trainer_state",
    ):
        checkpoints.publish(tmp_path / "saved", tmp_path / "state/checkpoint-4", tmp_path / "out", {}, known, 4)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_into_a_folder_that_another_process_has_taken_over(tmp_path: Path, known: Saved) -> None:
    from stages.lib.training.loop import Hooks, _Reporter

    def never(*_: object) -> None:
        raise AssertionError

    mine = lease.take(tmp_path, "sft@cold-start")
    assert mine is not None
    trainer = SimpleNamespace(accelerator=SimpleNamespace(wait_for_everyone=lambda: None))
    watch = _Reporter(
        trainer, known, 6, stage="sft@cold-start", scratch=tmp_path, hooks=Hooks(never, never, mine.check)
    )
    step = SimpleNamespace(global_step=6, max_steps=6, is_world_process_zero=True)
    args, saves = SimpleNamespace(output_dir=str(tmp_path / "state")), SimpleNamespace(should_save=True)
    watch.on_step_end(args, step, saves)
    own = tmp_path / "lease/1"
    own.write_text(own.read_text().replace(mine.token, "another"))
    with pytest.raises(lease.LeaseLost):
        watch.on_step_end(args, step, saves)
    watch.on_step_end(args, step, SimpleNamespace(should_save=False))
    with pytest.raises(lease.LeaseLost):
        watch.on_save(args, step, saves)
    mine.release()
