"""Assignment of clips to splits, by whole sources, so that no recording is in two splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import ceil
from posixpath import normpath

from stages.domain.core.records import Reject, Split
from stages.lib.annotations.annotation import Annotation
from stages.params import IngestParams


def recordings(rows: Sequence[Annotation]) -> dict[str, str]:
    """Map each row, by clip id, to its recording: its source, or the first one by name where rows
    about one file name several."""
    of_video: dict[str, str] = {}
    joined: dict[str, str] = {}

    def root(source: str) -> str:
        while (other := joined.get(source, source)) != source:
            source = other
        return source

    for row in rows:
        one, other = root(row.source_id), root(of_video.setdefault(normpath(row.video), row.source_id))
        if one != other:
            joined[max(one, other)] = min(one, other)
    return {row.clip_id: root(row.source_id) for row in rows}


def assign_splits(rows: Sequence[Annotation], params: IngestParams, seed: int) -> tuple[dict[str, Split], list[Reject]]:
    """Assign a split to each usable row, by clip id.

    An annotated split has precedence and holds for the whole recording; otherwise the recording's
    name and the seed decide, so that adding one changes no other. Rows whose split differs from the
    first one annotated for their recording are rejected with the reason ``split-conflict``.
    """
    sources = recordings(rows)
    annotated: dict[str, tuple[Split, str]] = {}
    for row in sorted(rows, key=lambda row: row.clip_id):
        if row.split is not None:
            annotated.setdefault(sources[row.clip_id], (row.split, row.clip_id))
    splits: dict[str, Split] = {}
    rejects: list[Reject] = []
    for row in rows:
        source = sources[row.clip_id]
        split, first = annotated.get(source, (drawn_split(source, params, seed), row.clip_id))
        if row.split in (None, split):
            splits[row.clip_id] = split
        else:
            detail = (
                f"split: {row.split!r}, but source {source!r} is in {split!r} (clip {first!r}); put one"
                " source into one split"
            )
            joined = row.rows if row.rows > 1 else None
            rejects.append(Reject(item=row.clip_id, reason="split-conflict", detail=detail, rows=joined))
    return splits, rejects


def drawn_split(source_id: str, params: IngestParams, seed: int) -> Split:
    """Draw test, validation or train by a hash of the seed and the source's name, with the
    fractions set in ``ingest``."""
    drawn = int(hashlib.sha256(f"{seed}/split/{source_id}".encode()).hexdigest()[:16], 16)
    if drawn < _bound(params.test_share):
        return "test"
    return "validation" if drawn < _bound(params.test_share + params.validation_share) else "train"


@lru_cache(maxsize=16)
def _bound(share: float) -> int:
    """Lowest of the 16**16 numbers that is no less than this fraction of them, exactly."""
    return ceil(Fraction(share) * 16**16)
