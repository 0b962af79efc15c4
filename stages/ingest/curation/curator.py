"""Curation of the clips of one source: recordings by their names, shots and flags, near-duplicates.

Each is off unless ``ingest`` asks for it; only the warning about names is always given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stages.domain.core.records import Clip, Reject, Span, Split
from stages.ingest.card import cell
from stages.ingest.curation.duplicates import (
    NearDuplicate,
    Signature,
    near_duplicates,
    signature,
    without_near_duplicates,
)
from stages.ingest.curation.grouping import Alike, alike, grouped, warning
from stages.ingest.curation.viewing import Viewed, flags
from stages.lib.annotations.annotation import Annotation
from stages.params import IngestParams

#: Most pairs and names on the card; all pairs are in a file beside it.
LISTED = 20


class Curator:
    """Curates the clips of a source while it is examined, and keeps what it found.

    Attributes:
        pairs: near-duplicates, in order of their ids; also those that were dropped.
        names: clips whose names look alike and that are in several splits.
    """

    def __init__(self, params: IngestParams) -> None:
        self._params = params
        self._signatures: dict[str, Signature] = {}
        self.pairs: list[NearDuplicate] = []
        self.names: list[Alike] = []

    def recordings(self, rows: Iterable[Annotation]) -> list[Annotation]:
        """Name the recordings of rows by ``ingest.source_pattern``."""
        return grouped(rows, self._params.source_pattern)

    def splits(self, rows: Iterable[Annotation], splits: Mapping[str, Split]) -> None:
        """Look for names that are alike and in several splits."""
        self.names = alike(rows, splits)

    def take(self, clip: Clip, viewed: Viewed | None) -> Clip:
        """Return the clip with its shots and flags, if its file was looked at."""
        if viewed is None:
            return clip
        first = clip.first_frame
        part = Span(start=first, stop=first + clip.frames)
        pictures = viewed.pictures_in(part)
        if self._params.near_duplicates is not None:
            self._signatures[clip.clip_id] = signature(pictures, clip.frames, clip.rate)
        found = flags(pictures, clip.frames / clip.rate)
        return clip.model_copy(update={"shots": viewed.shots_in(part), "flags": found or None})

    def without_near_duplicates(self, clips: Sequence[Clip]) -> tuple[list[Clip], list[Reject]]:
        """Look for near-duplicates, and drop them if ``ingest.near_duplicates`` says so."""
        seen = [clip for clip in clips if clip.clip_id in self._signatures]
        self.pairs = near_duplicates(seen, [self._signatures[clip.clip_id] for clip in seen])
        if self._params.near_duplicates != "drop":
            return list(clips), []
        return without_near_duplicates(clips, self.pairs)

    def summary(self, clips: Sequence[Clip]) -> dict[str, Any]:
        """Counts for ``summary.json``; empty if nothing was asked for, or found."""
        counts: dict[str, Any] = {}
        if self._params.curate:
            counts["shots"] = shots_of(clips)
            counts["flagged"] = dict(sorted(Counter(flag for clip in clips for flag in clip.flags or ()).items()))
        if self._params.near_duplicates is not None:
            counts["near_duplicates"] = {
                "pairs": len(self.pairs),
                "across_splits": sum(pair.across_splits for pair in self.pairs),
            }
        if self.names:
            counts["names_alike"] = {group.name: group.clips for group in self.names}
        return counts

    def card(self, clips: Sequence[Clip]) -> str:
        """Lines for the data card, as Markdown; empty if nothing was asked for, or found."""
        lines: list[str] = []
        counts = self.summary(clips)
        for title in ("shots", "flagged"):
            if table := counts.get(title):
                lines += ["", f"| {title} | clips |", "|---|---|", *(f"| {key} | {n:,} |" for key, n in table.items())]
        across = [pair for pair in self.pairs if pair.across_splits]
        if self._params.near_duplicates is not None:
            dropped = ", dropped to one each" if self._params.near_duplicates == "drop" else ""
            lines += ["", f"{len(self.pairs):,} pairs of near-duplicates{dropped}, {len(across):,} across splits."]
        if self.pairs:
            lines += ["", "| near-duplicates | splits | bits of 63 | colour of 255 |", "|---|---|---|---|"]
            # Those across splits first: they leak what is measured into what is trained on.
            listed = sorted(self.pairs, key=lambda pair: (not pair.across_splits, pair.clips))[:LISTED]
            lines += [
                f"| {_cell(pair.clips[0])}, {_cell(pair.clips[1])} | {', '.join(pair.splits)} | {pair.bits:g} |"
                f" {pair.colour} |"
                for pair in listed
            ]
            if len(self.pairs) > LISTED:
                lines += ["", f"and {len(self.pairs) - LISTED:,} others."]
        if self.names:
            lines += ["", f"Warning: {_cell(warning(self.names))}."]
        return "\n".join(lines) + "\n" if lines else ""


def shots_of(clips: Iterable[Clip]) -> dict[str, int]:
    """Number of clips of one shot, of several, and of those that were not looked at."""
    counted = Counter("not looked at" if clip.shots is None else "several" if clip.shots else "one" for clip in clips)
    return {name: counted[name] for name in ("one", "several", "not looked at") if counted[name]}


def _cell(text: str) -> str:
    # File names are data: they must not be set as code either.
    return cell(text).replace("`", "'")
