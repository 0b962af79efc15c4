"""Assignment of clips to splits, by whole sources, so that no recording is in two splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction

from stages.domain.core.records import Reject, Split
from stages.lib.annotations.annotation import Annotation
from stages.params import IngestParams


def assign_splits(rows: Sequence[Annotation], params: IngestParams, seed: int) -> tuple[dict[str, Split], list[Reject]]:
    """Assign a split to each usable row, by clip id.

    An annotated split has precedence and holds for the whole source; otherwise the source's name
    and the seed decide, so that adding a source changes no other. Rows whose split differs from the
    first one annotated for their source are rejected with the reason ``split-conflict``.
    """
    annotated: dict[str, tuple[Split, str]] = {}
    for row in sorted(rows, key=lambda row: row.clip_id):
        if row.split is not None:
            annotated.setdefault(row.source_id, (row.split, row.clip_id))
    splits: dict[str, Split] = {}
    rejects: list[Reject] = []
    for row in rows:
        split, first = annotated.get(row.source_id, (drawn_split(row.source_id, params, seed), row.clip_id))
        if row.split in (None, split):
            splits[row.clip_id] = split
        else:
            detail = (
                f"split: {row.split!r}, but source {row.source_id!r} is in {split!r} (clip {first!r}); put one"
                " source into one split"
            )
            rejects.append(Reject(item=row.clip_id, reason="split-conflict", detail=detail))
    return splits, rejects


def drawn_split(source_id: str, params: IngestParams, seed: int) -> Split:
    """Draw test, validation or train by a hash of the seed and the source's name, with the
    fractions set in ``ingest``."""
    drawn = Fraction(int(hashlib.sha256(f"{seed}/split/{source_id}".encode()).hexdigest()[:16], 16), 16**16)
    if drawn < params.test_share:
        return "test"
    return "validation" if drawn < params.test_share + params.validation_share else "train"
