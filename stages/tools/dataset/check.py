"""Preview of ingest and synthesize on a folder of videos: writes nothing, runs no DVC, opens no
run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from stages.domain.core.records import Clip, Reject, TaskName, reject_order
from stages.domain.tasks.synthesis import synthesise
from stages.ingest.curation.curator import Curator
from stages.ingest.curation.duplicates import NearDuplicate
from stages.ingest.curation.grouping import warning
from stages.ingest.examine import RowCounts, examine_source
from stages.ingest.source import open_source
from stages.lib.annotations.annotation import FILE_REASONS, PART_REASONS, SourceError, rows_rejected
from stages.params import Params

__all__ = ["Checked", "SourceError", "check"]


@dataclass(frozen=True)
class Checked:
    """Result of a check. ``hazards``: files that decord must not read, by reason. ``rows``: of the
    annotation file. ``samples``: samples of each task from the accepted clips."""

    clips: tuple[Clip, ...]
    rejects: tuple[Reject, ...]
    hazards: Counter[str]
    rows: RowCounts
    samples: dict[TaskName, int]
    set_aside: dict[TaskName, tuple[Reject, ...]]
    #: What curation counted (:meth:`stages.ingest.curation.curator.Curator.summary`), the pairs of
    #: near-duplicates, and a warning about names that look alike; empty: there is none.
    curated: dict[str, Any]
    near_duplicates: tuple[NearDuplicate, ...]
    names_alike: str
    #: Reasons of rejects that are parts of rows.
    part_reasons: frozenset[str] = PART_REASONS
    #: Columns of the annotations that their mapping does not use.
    unused: tuple[str, ...] = ()

    @property
    def rows_rejected(self) -> int:
        """Number of rows that ingest sets aside; with those used, all that were read."""
        return rows_rejected(self.rejects)

    @property
    def parts_rejected(self) -> int:
        """Number of parts of rows (events, questions …) that ingest sets aside."""
        return sum(reject.reason in self.part_reasons and reject.rows is None for reject in self.rejects)

    @property
    def files_rejected(self) -> int:
        """Number of files that no row names."""
        return sum(reject.reason in FILE_REASONS for reject in self.rejects)


def check(
    params: Params,
    source: str,
    annotation_format: str | None,
    annotations: str | None,
    videos: str | None = None,
    *,
    curate: bool = False,
) -> Checked:
    """Examine every file of ``source``, a folder or an address, as ingest would, with the present
    parameters, and count the resulting samples.

    Args:
        videos: root of the videos, where that is another one.
        curate: also look at frames and for near-duplicates, whatever the parameters say.

    Raises:
        SourceError: there is no such format; the folder or its annotation file cannot be used at
            all.
    """
    changed: dict[str, Any] = {
        "source": source,
        "format": annotation_format or params.ingest.format,
        "annotations": annotations,
        "videos": videos,
    }
    if curate:
        changed |= {"curate": True, "near_duplicates": params.ingest.near_duplicates or "report"}
    # Not validated: a mapping that is only tried may lie anywhere.
    settings = params.ingest.model_copy(update=changed)
    opened, curator = open_source(settings), Curator(settings)
    clips, rejects, hazards, counts, unused = examine_source(settings, params.seed, source=opened, curator=curator)
    samples: dict[TaskName, int] = {}
    set_aside: dict[TaskName, tuple[Reject, ...]] = {}
    for task in params.synthesize.tasks.named:
        rows = list(synthesise(clips, task, params.synthesize.tasks, params.synthesize.sampled_frames, params.seed))
        samples[task] = sum(len(accepted) for _, accepted, _ in rows)
        set_aside[task] = tuple(sorted((reject for _, _, refused in rows for reject in refused), key=reject_order))
    return Checked(
        tuple(clips),
        tuple(rejects),
        hazards,
        counts,
        samples,
        set_aside,
        curated=curator.summary(clips),
        near_duplicates=tuple(curator.pairs),
        names_alike=warning(curator.names),
        unused=unused,
    )
