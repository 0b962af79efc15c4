"""Preview of ingest and synthesize on a folder of videos: writes nothing, runs no DVC, opens no
run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from stages.domain.core.records import Clip, Reject, TaskName, reject_order
from stages.domain.tasks.synthesis import synthesise
from stages.ingest.examine import examine_source
from stages.lib.annotations.annotation import PART_REASONS, SourceError
from stages.params import IngestParams, Params

__all__ = ["Checked", "SourceError", "check"]


@dataclass(frozen=True)
class Checked:
    """Result of a check. ``hazards``: files that decord must not read, by reason. ``samples``:
    samples of each task from the accepted clips."""

    clips: tuple[Clip, ...]
    rejects: tuple[Reject, ...]
    hazards: Counter[str]
    samples: dict[TaskName, int]
    set_aside: dict[TaskName, tuple[Reject, ...]]
    #: Reasons of rejects that are parts of rows.
    part_reasons: frozenset[str] = PART_REASONS


def check(
    params: Params, source: str, annotation_format: str | None, annotations: str | None, videos: str | None = None
) -> Checked:
    """Examine every file of ``source``, a folder or an address, as ingest would, with the present
    parameters, and count the resulting samples. ``videos``: root of the videos, where that is
    another one.

    Raises:
        SourceError: there is no such format; the folder or its annotation file cannot be used at
            all.
    """
    changed = {
        "source": source,
        "format": annotation_format or params.ingest.format,
        "annotations": annotations,
        "videos": videos,
    }
    settings = IngestParams.model_validate(params.ingest.model_dump() | changed)
    clips, rejects, hazards = examine_source(settings, params.seed)
    samples: dict[TaskName, int] = {}
    set_aside: dict[TaskName, tuple[Reject, ...]] = {}
    for task in params.synthesize.tasks.named:
        rows = list(synthesise(clips, task, params.synthesize.tasks, params.synthesize.sampled_frames, params.seed))
        samples[task] = sum(len(accepted) for _, accepted, _ in rows)
        set_aside[task] = tuple(sorted((reject for _, _, refused in rows for reject in refused), key=reject_order))
    return Checked(tuple(clips), tuple(rejects), hazards, samples, set_aside)
