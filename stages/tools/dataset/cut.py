"""Cut long recordings without annotations into clips at shot boundaries: virtually, as rows with
``video``, ``start``, ``end`` and ``source``. No file is changed or encoded.

Each file is decoded once, by the code of ingest and into its kind of journal: a cut that was killed
goes on where it was, and an ingest with ``curate`` of the same folder need not decode again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from stages.domain.core.records import Reject, Span
from stages.errors import InputError
from stages.ingest.clips import Media
from stages.ingest.curation.grouping import grouped
from stages.ingest.examine import examine_files, journal_file
from stages.ingest.parts import equal_spans
from stages.lib.annotations.annotation import Annotation, SourceError, videos_in
from stages.lib.annotations.writing import write_annotations
from stages.params import IngestParams, Params
from stages.runtime import paths

#: Fields of the rows that this module writes; a file with other fields was written by people.
_OWN = frozenset({"video", "start", "end", "source"})


@dataclass(frozen=True)
class Lengths:
    """Lengths of clips in seconds. ``join``: shots shorter than the least are joined to their
    neighbours instead of left out."""

    least_s: Fraction
    most_s: Fraction
    join: bool


@dataclass
class Cut:
    """Counts of a cut. ``short``: shots that were left out, of ``short_s`` seconds in all;
    ``rejects``: files that cannot be read."""

    clips: int = 0
    clips_s: Fraction = Fraction(0)
    recordings: int = 0
    recordings_s: Fraction = Fraction(0)
    shots: int = 0
    short: int = 0
    short_s: Fraction = Fraction(0)
    rejects: list[Reject] = field(default_factory=list)


def cut(params: Params, folder: Path, out: Path, lengths: Lengths, timeout_s: float, in_project: bool) -> Cut:
    """Cut every video below ``folder``, and write the rows to ``out``, which appears complete or
    not at all.

    Args:
        timeout_s: time limit for one file.
        in_project: keep the journal where ingest does; else beside ``out``.

    Raises:
        SourceError: the folder does not exist or holds no video.
        InputError: ``out`` holds annotations that this module has not written.
    """
    if not folder.is_dir():
        raise SourceError("folder", f"{str(folder)!r} is not a folder", "name one with videos")
    videos = sorted(videos_in(folder))
    if not videos:
        raise SourceError("folder", f"{str(folder)!r} holds no video", "name the folder that holds the files")
    _check_own(out)
    plain = {"source": str(folder), "videos": None, "names": None}
    changes = plain | {"curate": True, "timeout_s": timeout_s, "normalise": False}
    settings = params.ingest.model_copy(update=changes)
    journal = journal_file(settings)
    if not in_project:
        journal = out.with_name(f".{out.name}.{journal.name}")
    found = Cut()
    unfinished = out.with_name(out.name + paths.UNFINISHED)
    write_annotations(_rows(videos, settings, journal, lengths, found), unfinished)
    unfinished.replace(out)
    return found


def _rows(
    videos: Sequence[str], settings: IngestParams, journal: Path, lengths: Lengths, found: Cut
) -> Iterator[Annotation]:
    for report in examine_files(videos, settings, journal):
        if report.media is None or report.viewed is None:
            assert report.problem is not None
            problem = report.problem
            found.rejects.append(Reject(item=report.video, reason=problem.reason, detail=problem.detail))
            continue
        media, shots = report.media, report.viewed.shots
        found.recordings += 1
        found.recordings_s += media.frames / media.rate
        found.shots += len(shots) + 1
        for part in parts(media.frames, media.rate, shots, lengths):
            length_s = part.frames / media.rate
            if length_s < lengths.least_s:
                found.short += 1
                found.short_s += length_s
                continue
            found.clips += 1
            found.clips_s += length_s
            yield _row(report.video, media, part, settings.source_pattern)


def _row(video: str, media: Media, part: Span, source_pattern: str | None) -> Annotation:
    start, end = (media.starts_s + frame / media.rate for frame in (part.start, part.stop))
    (row,) = grouped([Annotation(video=video, start=start, end=end)], source_pattern)
    # Named, so that the rows say of what recording they are also where others read them.
    return row if row.source is not None else row.model_copy(update={"source": row.recording})


def parts(frames: int, rate: Fraction, shots: Sequence[int], lengths: Lengths) -> list[Span]:
    """Divide a recording at its shots: each into equal parts of at most ``most_s``.

    Args:
        shots: first frames of all shots but the first.

    Returns:
        Parts that make up the whole recording. With ``join`` only a recording that is too short
        itself gives one of less than ``least_s``; without, so do short shots.
    """
    edges = [0, *shots, frames]
    spans = [Span(start=start, stop=stop) for start, stop in pairwise(edges)]
    if lengths.join:
        spans = _joined(spans, lengths.least_s * rate)
    whole = []
    for span in spans:
        pieces = equal_spans(span.frames, max(1, int(lengths.most_s * rate)))
        whole += [Span(start=span.start + piece.start, stop=span.start + piece.stop) for piece in pieces]
    return whole


def _joined(spans: Sequence[Span], least_frames: Fraction) -> list[Span]:
    """Join each span that is too short to the next one, and the last to the one before it."""
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].frames < least_frames:
            joined[-1] = Span(start=joined[-1].start, stop=span.stop)
        else:
            joined.append(span)
    if len(joined) > 1 and joined[-1].frames < least_frames:
        last = joined.pop()
        joined[-1] = Span(start=joined[-1].start, stop=last.stop)
    return joined


def _check_own(out: Path) -> None:
    """Refuse to replace annotations that people have written."""
    if not out.exists():
        return
    problem = None
    try:
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not all(isinstance(row, dict) and set(row) == _OWN for row in rows):
            problem = "holds annotations that are not of this command"
    except (OSError, ValueError) as error:
        problem = f"cannot be read as rows of this command ({error})"
    if problem is not None:
        raise InputError("--out", f"{str(out)!r} {problem}", "name another file, or move that one away")
