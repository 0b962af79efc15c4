"""Checkpoints of training: states to resume from after a crash, and the policies that a stage
publishes.

A stage's scratch folder has ``state/checkpoint-<step>`` (the last two; weights, adapters if any,
optimiser, schedule, random state) and ``saved/checkpoint-<step>`` (an ordinary model folder for
each save, with a Checkpoint record beside it). Nothing is written into the stage's out before
training has ended, because DVC empties an out before it runs the stage again.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stages.domain.core.records import Checkpoint
from stages.errors import MachineError
from stages.runtime import paths

log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_TRAINER_STATE = "trainer_state.json"
_SAVED = "saved.json"
_FSDP_OPTIMISER = "optimizer.bin"
#: Model folders saved so far: by step, the sizes of the files by name.
Saved = dict[int, dict[str, int]]


class CheckpointGone(MachineError, RuntimeError):
    """A checkpoint that this training saved is missing."""


#: Files of the trainer, not of the model, in a folder that transformers' Trainer saves.
_STATE_FILES = {
    "optimizer.pt",
    _FSDP_OPTIMISER,
    "scheduler.pt",
    "scaler.pt",
    "training_args.bin",
    "latest",
    "zero_to_fp32.py",
    "zero_to_torch.py",
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "task_sampler.json",
    "surplus.safetensors",
}
#: Prefix of metrics that were measured while training (:mod:`stages.lib.training.watching`).
WATCHED = "watch/"
#: Prefix of metrics of the clock, which are reported and stand in no out.
CLOCK = "clock/"
#: Logged values that depend on the clock or on the number of resumptions, or have no information.
_NOT_METRICS = {"epoch", "step", "step_time", "total_flos", "num_tokens", "num_input_tokens_seen", "train_loss"}


def seal(state: Path) -> None:
    """Write the manifest that marks a state as complete. It comes last and atomically, so a state
    without it is incomplete."""
    sizes = {str(path.relative_to(state)): path.stat().st_size for path in sorted(state.rglob("*")) if path.is_file()}
    sizes.pop(_MANIFEST, None)
    _write(state / _MANIFEST, json.dumps(sizes, indent=1, sort_keys=True))


def newest_whole(states: Path) -> Path | None:
    """Find the newest complete state, or None. Incomplete ones are logged and removed."""
    for state in sorted(states.glob("checkpoint-*"), key=_step, reverse=True):
        fault = _fault(state)
        if fault is None:
            return state
        log.warning("%s: set aside, %s; an older state or the beginning is used", state.name, fault)
        shutil.rmtree(state)
    return None


def _fault(state: Path) -> str | None:
    try:
        sizes: dict[str, int] = json.loads((state / _MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "it was not finished"
    except json.JSONDecodeError:
        return "its manifest is damaged"
    if _SAVED not in sizes:
        return "it does not list the checkpoints saved before it (it is of version 0.1)"
    for name, size in sizes.items():
        path = state / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name} is missing or has another size"
    return None


def note_saved(state: Path, so_far: Saved) -> Saved:
    """Add the model folder that ``state`` will give to the list ``so_far``, and write the list into
    the state, before it is sealed."""
    saved_files = {**so_far, _step(state): {path.name: path.stat().st_size for path in _model_files(state)}}
    _write(state / _SAVED, json.dumps(saved_files, sort_keys=True))
    return saved_files


def read_saved(state: Path) -> Saved:
    """Read the list of saved model folders from a sealed state."""
    rows: dict[str, dict[str, int]] = json.loads((state / _SAVED).read_text(encoding="utf-8"))
    return {int(step): files for step, files in rows.items()}


def check_saved(saved: Path, saved_files: Saved) -> None:
    """Check that every model folder of the list ``saved_files`` is complete in the folder
    ``saved``.

    Raises:
        CheckpointGone: one of them is missing or incomplete. Without it, fewer checkpoints would be
            published than were saved, and a repetition of the same training would differ.
    """
    for step, files in sorted(saved_files.items()):
        folder = saved / f"checkpoint-{step}"
        if not folder.with_name(f"{folder.name}.json").is_file():
            raise _gone(step, saved, folder.name)
        _check_files(step, folder, files, saved)


def _check_files(step: int, folder: Path, files: Mapping[str, int], saved: Path) -> None:
    for name, size in files.items():
        try:
            actual = (folder / name).stat().st_size
        except OSError:
            actual = -1
        if actual != size:
            raise _gone(step, saved, f"{folder.name}/{name}")


def _gone(step: int, saved: Path, missing: str) -> CheckpointGone:
    return CheckpointGone(
        f"checkpoint {step}",
        f"it was saved by this training and is gone from {saved} ({missing})",
        "find out what deletes there, put it back, or begin again without it: vidbridge scratch clean",
    )


#: Engines that a state may be of, beside :func:`with_deepspeed`.
NO_ENGINE, FSDP = "neither DeepSpeed nor FSDP", "FSDP"


def with_deepspeed(ranks: int) -> str:
    """Name of DeepSpeed on so many processes, over which it partitions the optimiser's state."""
    return f"DeepSpeed on {ranks} processes"


def engine_of_state(state: Path) -> str:
    """Engine whose optimiser a state holds: what another one cannot read. That of FSDP is whole,
    and read by any number of processes."""
    if ranks := len(list(state.glob("global_step*/*_optim_states.pt"))):
        return with_deepspeed(ranks)
    return FSDP if (state / _FSDP_OPTIMISER).is_file() else NO_ENGINE


def export(state: Path, saved: Path, record: Checkpoint) -> Path:
    """Make the model folder of a state under ``saved``, and its record. Files are hard links if the
    file system supports them.

    The folder is made under a temporary name and renamed, so a folder that exists is complete.
    """
    target = saved / state.name
    partial = saved / f".{state.name}{paths.UNFINISHED}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in _model_files(state):
        _link(path, partial / path.name)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    _write(saved / f"{state.name}.json", record.model_dump_json())
    return target


def _model_files(state: Path) -> list[Path]:
    """List the files of a state that make up a model folder."""
    own = {*_STATE_FILES, _MANIFEST, _TRAINER_STATE, _SAVED}
    return [
        path
        for path in sorted(state.iterdir())
        if path.is_file() and path.name not in own and not path.name.startswith("rng_state")
    ]


def read_history(state: Path) -> list[dict[str, float]]:
    """Read the metrics logged up to a state, one row per step, without values that depend on the
    clock."""
    entries = json.loads((state / _TRAINER_STATE).read_text(encoding="utf-8"))["log_history"]
    rows: dict[int, dict[str, float]] = {}
    for entry in entries:
        if values := metrics(entry):
            # A measurement while training is logged apart from the training of its step.
            rows.setdefault(int(entry["step"]), {}).update(values)
    return [{"step": step, **values} for step, values in rows.items()]


def metrics(logged: Mapping[str, Any]) -> dict[str, float]:
    """Keep the finite metrics of a trainer's log entry; drop timings and counters."""
    return {
        name: float(value)
        for name, value in logged.items()
        if name not in _NOT_METRICS
        and not name.startswith(("train_", CLOCK))
        and isinstance(value, int | float)
        and math.isfinite(value)
    }


def clock_metrics(logged: Mapping[str, Any]) -> dict[str, float]:
    """Keep the metrics of the clock of a trainer's log entry."""
    return {name: float(value) for name, value in logged.items() if name.startswith(CLOCK)}


def record_of(state: Path, stage: str, last_step: int | None) -> Checkpoint:
    """Build the record of the policy in a state; its metrics are the last ones logged, and those of
    a measurement at its own step.

    Args:
        last_step: step of the row's policy; None: it is chosen at the end.
    """
    step = _step(state)
    values: dict[str, float] = {}
    for row in read_history(state):
        trained = {name: value for name, value in row.items() if name != "step" and not name.startswith(WATCHED)}
        if trained:
            values = trained
        if row["step"] == step:
            values = values | {name: value for name, value in row.items() if name.startswith(WATCHED)}
    final = step == last_step
    return Checkpoint(stage=stage, step=step, path=paths.FINAL if final else state.name, final=final, metrics=values)


def publish(
    saved: Path, last: Path, out: Path, summary: Mapping[str, Any], saved_files: Saved, final_step: int
) -> list[Checkpoint]:
    """Fill ``out`` from the saved checkpoints: model folders, ``checkpoints.jsonl``,
    ``history.jsonl``, ``summary.json``. That of ``final_step`` becomes the row's policy.

    Files are linked, not moved: if this is interrupted, DVC empties ``out`` and the scratch folder
    still has everything.

    Raises:
        CheckpointGone: one of the list ``saved_files`` is missing, or vanished meanwhile; or the
            state ``last`` is gone.
    """
    check_saved(saved, saved_files)
    records = [
        Checkpoint.model_validate_json((saved / f"checkpoint-{step}.json").read_text(encoding="utf-8"))
        for step in sorted(saved_files)
    ]
    records = [
        record.model_copy(
            update={
                "final": record.step == final_step,
                "path": paths.FINAL if record.step == final_step else f"checkpoint-{record.step}",
            }
        )
        for record in records
    ]
    if not (last / _TRAINER_STATE).is_file():
        raise _gone(_step(last), last.parent, f"{last.name}/{_TRAINER_STATE}")
    out.mkdir(parents=True, exist_ok=True)
    for record in records:
        target = out / record.path
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for path in sorted((saved / f"checkpoint-{record.step}").iterdir()):
            _link(path, target / path.name)
        _check_files(record.step, target, saved_files[record.step], saved)
    _write(out / paths.CHECKPOINTS_FILE, _lines(record.model_dump_json() for record in records))
    _write(out / paths.HISTORY_FILE, _lines(json.dumps(row, sort_keys=True) for row in read_history(last)))
    _write(out / paths.SUMMARY_FILE, json.dumps(summary, indent=1, sort_keys=True) + "\n")
    return records


def _step(state: Path) -> int:
    return int(state.name.rpartition("-")[2])


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _lines(rows: Iterable[str]) -> str:
    return "".join(f"{row}\n" for row in rows)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}{paths.UNFINISHED}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
