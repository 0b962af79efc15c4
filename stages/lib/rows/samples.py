"""The rows that verbs load: samples of a split, and the clips that they show."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from stages.domain.core.records import SPLITS, Clip, Sample, Split, TaskName
from stages.errors import VidbridgeError
from stages.lib.rows.jsonl import iterate_rows, read_json, read_rows
from stages.params import Params
from stages.runtime import paths


class InputError(VidbridgeError, RuntimeError):
    """Something that a stage needs is not there; the message says what to run."""


def load_samples(split: Split, tasks: Iterable[TaskName], folder: Path = paths.SAMPLES) -> list[Sample]:
    """The samples of these tasks, in the order they were written. ``folder``: all of them, or those that a filter has kept.

    Raises:
        InputError: a task has no sample in this split.
    """
    samples: list[Sample] = []
    for task in tasks:
        path = paths.samples_file(folder, split, task)
        rows = read_rows(path, Sample) if path.exists() else []
        if not rows:
            raise InputError(
                f"{path}: no {task} sample in the {split} split; see {paths.SAMPLES / paths.REJECTS_FILE} for what was set aside and why"
            )
        samples += rows
    return samples


def sheet_samples(params: Params, task: TaskName) -> list[Sample]:
    """The samples that the contact sheet of ``task`` shows: the first of the first split that has any; none where no split has."""
    files = [paths.samples_file(paths.SAMPLES, split, task) for split in SPLITS]
    file = next((file for file in files if file.exists() and file.stat().st_size), None)
    return [] if file is None else list(islice(iterate_rows(file, Sample), params.synthesize.contact_sheet_samples))


def load_clips() -> dict[str, Clip]:
    return {clip.clip_id: clip for clip in iterate_rows(paths.CLIPS / paths.MANIFEST_FILE, Clip)}


def samples_present() -> dict[Split, list[TaskName]]:
    """Which tasks have samples in which split, as synthesize counted them."""
    made = read_json(paths.SAMPLES / paths.SUMMARY_FILE)["samples"]
    return {split: [task for task, count in made[split].items() if count] for split in SPLITS}
