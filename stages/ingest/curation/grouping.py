"""Recordings of clips whose annotations name none: by a pattern of their paths, and a warning where
names look as if clips were of one recording.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from stages.domain.core.records import SPLITS, Split
from stages.lib.annotations.annotation import Annotation

#: A number, a time or several of them at the end of a name, behind a separator: ``_000010_000020``,
#: ``.part2``, `` (3)``, ``-00:01:00-00:02:00``.
_NUMBERED = re.compile(
    r"(?:[\s._@()\[\]-]+(?:part|pt|segment|seg|clip|cut|chunk|scene|shot)?[._-]*\d+(?:[.:,]\d+)*s?[)\]]*)+$",
    re.IGNORECASE,
)


class Alike(NamedTuple):
    """Clips whose names differ only by a number at their end, which are in several splits.

    ``name``: their common beginning.
    """

    name: str
    clips: int
    splits: tuple[Split, ...]


def grouped(rows: Iterable[Annotation], pattern: str | None) -> list[Annotation]:
    """Set the source of rows that have none to the group of ``ingest.source_pattern`` in their
    path; rows whose path does not match are unchanged."""
    if pattern is None:
        return list(rows)
    compiled = re.compile(pattern)
    found = []
    for row in rows:
        match = compiled.search(row.video) if row.source is None else None
        found.append(row.model_copy(update={"source": match[1]}) if match is not None and match[1] else row)
    return found


def alike(rows: Iterable[Annotation], splits: Mapping[str, Split]) -> list[Alike]:
    """Find groups of clips without a source that look like one recording and are in several
    splits; the largest first."""
    groups: dict[str, list[Split]] = {}
    for row in rows:
        if row.source is None and row.clip_id in splits:
            name = _NUMBERED.sub("", row.recording)
            if name != row.recording and name.rpartition("/")[2]:
                groups.setdefault(name, []).append(splits[row.clip_id])
    found = [
        Alike(name, len(in_split), tuple(split for split in SPLITS if split in in_split))
        for name, in_split in groups.items()
        if len(set(in_split)) > 1
    ]
    return sorted(found, key=lambda group: (-group.clips, group.name))


def warning(groups: Sequence[Alike]) -> str:
    """Say which names look alike, and the remedy; empty if none do."""
    if not groups:
        return ""
    named = ", ".join(f"{group.name!r} ({group.clips:,} clips in {', '.join(group.splits)})" for group in groups[:3])
    more = f" and {len(groups) - 3:,} others" if len(groups) > 3 else ""
    return (
        f"names look alike and are in several splits: {named}{more}. If these are parts of one recording, set"
        " ingest.source_pattern, such as '^(.*)_[0-9]+[.]'; if not, '^(.*)$' says so"
    )
