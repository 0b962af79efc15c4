"""What the verbs load: samples of a split, and the frames they show."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from stages.domain.core.frames import Fit
from stages.domain.core.records import SPLITS, Clip, Sample, Split, TaskName
from stages.errors import VidbridgeError
from stages.lib.rows.jsonl import iterate_rows, read_json, read_rows
from stages.lib.video.loader import FrameLoader
from stages.params import Params
from stages.runtime import paths
from stages.runtime.frame_cache import FrameStore

#: What decoded frames may take in memory, in MB, unless VIDBRIDGE_FRAME_CACHE_MB says otherwise.
FRAME_CACHE_MB = 512
#: What they may take on disk, in GB, unless VIDBRIDGE_FRAME_DISK_GB says otherwise.
FRAME_DISK_GB = 20.0


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


def frame_loader(params: Params, fit: Callable[[], Fit] | None = None) -> FrameLoader:
    """Frames of samples, decoded from the source folder and kept in memory up to a bound; with ``fit``, large clips' on disk.

    Raises:
        InputError: VIDBRIDGE_FRAME_CACHE_MB or VIDBRIDGE_FRAME_DISK_GB is no number.
    """
    store = None if fit is None else frame_store()
    return FrameLoader(load_clips(), Path(params.ingest.source), frame_memory_bytes(), paths.CLIPS, store, fit)


def frame_memory_bytes() -> int:
    """What VIDBRIDGE_FRAME_CACHE_MB lets decoded frames take in memory.

    Raises:
        InputError: it is no number.
    """
    given = os.environ.get("VIDBRIDGE_FRAME_CACHE_MB", "").strip() or str(FRAME_CACHE_MB)
    if not given.isdecimal():
        raise InputError(
            f"VIDBRIDGE_FRAME_CACHE_MB: {given!r} is no number of megabytes; give a whole one such as {FRAME_CACHE_MB}"
        )
    return int(given) * 1_000_000


def frame_store() -> FrameStore | None:
    """Where VIDBRIDGE_FRAME_CACHE and VIDBRIDGE_FRAME_DISK_GB have frames kept on disk; None: nowhere.

    Raises:
        InputError: a bound that is no number.
    """
    given = os.environ.get("VIDBRIDGE_FRAME_DISK_GB", "").strip()
    try:
        gigabytes = float(given or FRAME_DISK_GB)
        most_bytes = int(gigabytes * 1e9)
    except (ValueError, OverflowError):
        most_bytes = -1
    if most_bytes < 0:
        raise InputError(
            f"VIDBRIDGE_FRAME_DISK_GB: {given!r} is no number of gigabytes; give one such as 20, or 0 to keep no frames on disk"
        )
    folder = Path(os.environ.get("VIDBRIDGE_FRAME_CACHE") or paths.FRAMES).expanduser()
    return FrameStore(folder, most_bytes) if most_bytes else None


def samples_present() -> dict[Split, list[TaskName]]:
    """Which tasks have samples in which split, as synthesize counted them."""
    made = read_json(paths.SAMPLES / paths.SUMMARY_FILE)["samples"]
    return {split: [task for task, count in made[split].items() if count] for split in SPLITS}
