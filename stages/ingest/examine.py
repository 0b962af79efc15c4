"""Examination of a source folder: read its rows, probe, fully decode and hash its files, and reject
what cannot be used.

The report of each file is written to a journal at once: an ingest that was killed continues where
it stopped, and an ingest after a new video was added examines only that video.
"""

from __future__ import annotations

import gc
import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from posixpath import normpath
from typing import Any, NamedTuple

from pydantic import ValidationError

from stages.domain.core.records import Clip, Reject, reject_order
from stages.ingest import conversion, examination
from stages.ingest.clips import row_reject, without_duplicates
from stages.ingest.curation import viewing, watching
from stages.ingest.curation.curator import Curator
from stages.ingest.examination import EXAMINING, TRANSIENT, Asked, FileReport, Problem, examine
from stages.ingest.files import Files, state_of
from stages.ingest.parts import to_clips
from stages.ingest.source import OpenSource, open_source
from stages.ingest.split import assign_splits, recordings
from stages.lib.annotations.annotation import Annotation, rows_rejected
from stages.lib.video.container import stated_s
from stages.params import IngestParams
from stages.runtime import paths
from stages.runtime.code_digest import code_digest
from stages.runtime.workers import ItemFailure, map_items

#: Reason of a video listed in ``ingest.exclude``. Its file is not read.
REMOVED = "removed-on-request"


class RowCounts(NamedTuple):
    """Rows of the annotation file: all, and those that gave a clip, or a part of one. The rejects
    count the others (:func:`~stages.lib.annotations.annotation.rows_rejected`)."""

    read: int
    used: int


class Examined(NamedTuple):
    """Content of a source folder.

    ``clips``: in order of their id; ``rejects``: by reason and name; ``hazards``: counts of files
    that decord must not read, by reason, before re-encoding; ``unused``: columns of the annotations
    that their mapping leaves out.
    """

    clips: list[Clip]
    rejects: list[Reject]
    hazards: Counter[str]
    rows: RowCounts
    unused: tuple[str, ...]


def examine_source(
    params: IngestParams,
    seed: int,
    journal: Path | None = None,
    source: OpenSource | None = None,
    curator: Curator | None = None,
) -> Examined:
    """Read the source and examine each file that a usable row is about, once.

    Args:
        params: the source, and the limits of a clip.
        seed: seed of the splits.
        journal: file of the reports, beside the folder of re-encoded files; None: examine every
            file and re-encode none.
        source: the source, if it was opened before.
        curator: keeps what curation finds, if the caller wants to read it.

    Raises:
        SourceError: the source cannot be used at all.
        SourceAccessError: it cannot be listed or fetched.
    """
    source = source or open_source(params)
    curator = curator or Curator(params)
    with _collected_later():
        rows, rejects, read, unused = source.read()
        rows = curator.recordings(rows)
    rejects += source.rejects
    read += rows_rejected(source.rejects)
    # Splits are assigned before anything is excluded, so that a removal moves no other clip.
    sources = recordings(rows)
    splits, conflicts = assign_splits(rows, params, seed)
    curator.splits(rows, splits)
    placed = [row for row in sorted(rows, key=lambda row: row.clip_id) if row.clip_id in splits]
    names = {normpath(video.video) for video in params.exclude}
    rejects += [_removed(row, "named in ingest.exclude") for row in placed if normpath(row.video) in names]
    of_file: dict[str, list[Annotation]] = {}
    for row in placed:
        if normpath(row.video) not in names:
            of_file.setdefault(row.video, []).append(row)
    # Also the same bytes under another name, which were rejected as a duplicate before.
    contents = {video.sha256: video.video for video in params.exclude if video.sha256 is not None}
    made: list[tuple[Annotation, Clip]] = []
    hazards: Counter[str] = Counter()
    whole = params.decodes_whole(len(of_file))
    rates = (next((row.rate for row in about if row.rate is not None), None) for about in of_file.values())
    asked = [
        Asked(video, rate, params.frame_rate, whole, watch=params.curate)
        for video, rate in zip(of_file, rates, strict=True)
    ]
    for about_file, report in zip(of_file.values(), _reports(asked, params, source.files, journal), strict=True):
        if report.media is None:
            assert report.problem is not None
            rejects += [_unusable(row, report.problem) for row in about_file]
            continue
        if (same := contents.get(report.media.sha256)) is not None:
            why = f"holds the same bytes as {same!r}, which is named in ingest.exclude"
            rejects += [_removed(row, why) for row in about_file]
            continue
        hazards.update(report.media.normalised_for or report.media.hazards)
        for row in about_file:
            clips, set_aside = to_clips(row, splits[row.clip_id], report.media, params, sources[row.clip_id])
            rejects += set_aside
            made += [(row, curator.take(clip, report.viewed)) for clip in clips]
    gc.unfreeze()
    kept, duplicates, used = _without_duplicates(made, curator)
    rejects = sorted(rejects + conflicts + duplicates, key=reject_order)
    return Examined(kept, rejects, hazards, RowCounts(read, used), unused)


def _without_duplicates(
    made: Sequence[tuple[Annotation, Clip]], curator: Curator
) -> tuple[list[Clip], list[Reject], int]:
    """Drop clips of equal content, and near-duplicates as the curator is told to. Returns the
    others, the rejects, and the number of rows that gave one of the others.

    A row that gave several clips is rejected by the reject of the first of them, if all are
    dropped.
    """
    different, same = without_duplicates(clip for _, clip in made)
    kept, near = curator.without_near_duplicates(different)
    differ, alive = ({id(clip) for clip in clips} for clips in (different, kept))
    used = {row.clip_id: row.rows for row, clip in made if id(clip) in alive}
    in_order = sorted(made, key=lambda pair: pair[1].clip_id)
    dropped = [pair for pair in in_order if id(pair[1]) not in differ]
    nearly_same = differ - alive
    dropped += [pair for pair in in_order if id(pair[1]) in nearly_same]
    counted, told = set(used), []
    for (row, _), reject in zip(dropped, [*same, *near], strict=True):
        rows = 0 if row.clip_id in counted else row.rows
        counted.add(row.clip_id)
        told.append(reject.model_copy(update={"rows": None if rows == 1 else rows}))
    return kept, told, sum(used.values())


def _removed(row: Annotation, why: str) -> Reject:
    return row_reject(row, REMOVED, f"{why}; it was removed on request")


def _unusable(row: Annotation, problem: Problem) -> Reject:
    return Reject(
        item=row.clip_id, reason=problem.reason, detail=problem.detail, rows=row.rows if row.rows > 1 else None
    )


@contextmanager
def _collected_later() -> Iterator[None]:
    """Switch the garbage collector off while many rows are built, none of which becomes garbage,
    and spare them later, too: to look through them again and again takes half of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_on:
            gc.enable()


def examine_files(videos: Sequence[str], params: IngestParams, journal: Path) -> Iterator[FileReport]:
    """Yield the report of each video of the plain folder ``ingest.source``, decoded whole, whatever
    its annotations say, in order. A second call goes on where the first one ended."""
    asked = [Asked(video, None, params.frame_rate, watch=params.curate) for video in videos]
    yield from _reports(asked, params, None, journal, by_seconds=True)
    gc.unfreeze()


def _reports(
    asked: Sequence[Asked], params: IngestParams, files: Files | None, journal: Path | None, *, by_seconds: bool = False
) -> Iterator[FileReport]:
    """Yield the report of each video, in order: from the journal if the file has not changed since,
    otherwise by examining it.

    Args:
        files: None: they are in the folder ``ingest.source``.
        by_seconds: the progress bar counts seconds of them, and not files.
    """
    if journal is None:
        yield from _examined(asked, params, None, files, by_seconds)
        return
    reencoded = journal.with_suffix("") if params.normalise else None
    here = Path(params.source) if files is None else files
    earlier = _read_journal(journal, here, reencoded, params.frame_rate, params.curate)
    known = [earlier.get(one) for one in asked]
    new = [one for one, report in zip(asked, known, strict=True) if report is None]
    if earlier:
        unchanged = len(asked) - len(new)
        print(f"ingest: {unchanged:,} of {len(asked):,} files were examined before and have not changed")
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a", encoding="utf-8") as lines:
        # Ends a line that a kill cut short.
        lines.write("\n" if lines.tell() else "")
        new_reports = _examined(new, params, reencoded, files, by_seconds)
        for report in known:
            if report is not None:
                yield report
                continue
            report = next(new_reports)
            if report.problem is None or report.problem.reason not in TRANSIENT:
                lines.write(report.model_dump_json(exclude_none=True) + "\n")
                lines.flush()
            yield report


def _examined(
    asked: Sequence[Asked], params: IngestParams, reencoded: Path | None, files: Files | None, by_seconds: bool
) -> Iterator[FileReport]:
    if files is None:
        yield from _examined_here(asked, params, reencoded, by_seconds)
        return
    by_name = {one.video: one for one in asked}
    for batch in files.batches(list(by_name)):
        yield from _examined_here([by_name[file.name]._replace(file=file) for file in batch], params, reencoded)


def _examined_here(
    asked: Sequence[Asked], params: IngestParams, reencoded: Path | None, by_seconds: bool = False
) -> Iterator[FileReport]:
    folder = Path(params.source)
    work = partial(examine, folder=folder, reencoded=reencoded, timeout_s=params.timeout_s)
    counted: dict[str, Any] = {}
    if by_seconds:
        counted = {"sizes": [stated_s(folder / one.video) for one in asked], "unit": " s of video"}
    results = map_items(work, asked, "ingest", timeout_s=params.timeout_s, **counted)
    for one, result in zip(asked, results, strict=True):
        if isinstance(result, ItemFailure):
            remedy = "; raise ingest.timeout_s if it is only long" if result.reason == "timeout" else ""
            problem = Problem(reason=result.reason, detail=f"{one.video}: {result.detail}{remedy}")
            yield FileReport(video=one.video, size=0, mtime_ns=0, whole=one.whole, rate=one.rate, problem=problem)
        else:
            yield result


def journal_file(params: IngestParams) -> Path:
    """Return the journal of the source; a change of the examining code starts another journal."""
    where = Path(params.source).resolve() if params.is_plain_folder else params.roots
    code = [Path(module.__file__ or "") for module in (*EXAMINING, conversion, examination, viewing, watching)]
    code.append(Path(__file__))
    curated = " curated" if params.curate else ""
    identity = f"{where} {params.normalise} {params.frame_rate}{curated} {code_digest(code)}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return paths.EXAMINED / f"{name}.jsonl"


def kept_at(journal: Path) -> Path:
    """Return the folder of the last result (:mod:`stages.ingest.unchanged`), beside the re-encoded
    files."""
    return journal.with_suffix("") / "outs"


def copy_normalised(clips: Sequence[Clip], journal: Path, folder: Path) -> None:
    """Copy re-encoded files into the folder that the clips' paths are relative to."""
    for path in dict.fromkeys(clip.path for clip in clips if clip.normalised):
        out = folder / path
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(journal.with_suffix("") / path, out)


def _read_journal(
    journal: Path, files: Path | Files, reencoded: Path | None, frame_rate: Fraction | None, watch: bool = False
) -> dict[Asked, FileReport]:
    """Read the reports of files that have not changed since. A last line that a kill cut short is
    skipped."""
    reports: dict[Asked, FileReport] = {}
    if not journal.is_file():
        return reports
    with journal.open("rb") as lines, _collected_later():
        for line in lines:
            try:
                report = FileReport.model_validate_json(line)
                state = state_of(f"{files}/{report.video}") if isinstance(files, Path) else files.stamp(report.video)
            except (ValidationError, OSError):
                continue
            normalised = report.media.normalised if report.media is not None else None
            missing = normalised is not None and not (reencoded is not None and (reencoded / normalised).is_file())
            # A sampled validation is no whole one, nor the other way round: the result must not
            # depend on what was done before.
            asked = Asked(report.video, report.rate, frame_rate, report.whole, watch)
            if state == (report.size, report.mtime_ns) and not missing:
                reports[asked] = report
            else:
                reports.pop(asked, None)
    return reports
