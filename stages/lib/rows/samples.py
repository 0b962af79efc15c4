"""Loading of samples of a split, and of the clips that they show."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from stages.domain.core.digest import digest
from stages.domain.core.records import SPLITS, Clip, Sample, Split, TaskName
from stages.errors import InputError
from stages.lib.rows.jsonl import iterate_rows, read_json, read_rows
from stages.params import Params
from stages.runtime import paths


def load_samples(split: Split, tasks: Iterable[TaskName], folder: Path = paths.SAMPLES) -> list[Sample]:
    """Load the samples of these tasks, in the order in which they were written. ``folder``: all
    samples, or those that a filter kept.

    Raises:
        InputError: a task has no sample in this split.
    """
    samples: list[Sample] = []
    for task in tasks:
        path = paths.samples_file(folder, split, task)
        rows = read_rows(path, Sample) if path.exists() else []
        if not rows:
            raise InputError(
                str(path),
                f"no {task} sample in the {split} split",
                f"see {paths.SAMPLES / paths.REJECTS_FILE} for what was rejected and why",
            )
        samples += rows
    return samples


def drawn_samples(split: Split, tasks: Iterable[TaskName], per_task: int, seed: int) -> list[Sample]:
    """Draw at most ``per_task`` samples of each task, as :func:`drawn` does.

    Raises:
        InputError: a task has no sample in this split.
    """
    return [sample for task in tasks for sample in drawn(load_samples(split, [task]), per_task, seed)]


def drawn(samples: Iterable[Sample], most: int | None, seed: int) -> list[Sample]:
    """Draw at most ``most`` samples, in the order of their ranks; None: all.

    A sample's rank in the draw depends on its own id only, so a new clip displaces few others.
    """
    return sorted(samples, key=lambda sample: digest({"seed": seed, "id": sample.sample_id}))[:most]


def sheet_samples(params: Params, task: TaskName) -> list[Sample]:
    """Load the samples of the contact sheet of ``task``: the first ones of the first split that has
    any; empty if none has."""
    files = [paths.samples_file(paths.SAMPLES, split, task) for split in SPLITS]
    file = next((file for file in files if file.exists() and file.stat().st_size), None)
    return [] if file is None else list(islice(iterate_rows(file, Sample), params.synthesize.contact_sheet_samples))


def load_clips() -> dict[str, Clip]:
    return {clip.clip_id: clip for clip in iterate_rows(paths.CLIPS / paths.MANIFEST_FILE, Clip)}


def samples_present() -> dict[Split, list[TaskName]]:
    """Tasks that have samples, by split, from the counts of stage ``synthesize``."""
    counts = read_json(paths.SAMPLES / paths.SUMMARY_FILE)["samples"]
    return {split: [task for task, count in counts[split].items() if count] for split in SPLITS}
