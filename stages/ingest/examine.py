"""Examination of a source folder: read its rows, probe, fully decode and hash its files, and reject
what cannot be used.

The report of each file is written to a journal at once: an ingest that was killed continues where
it stopped, and an ingest after a new video was added examines only that video.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from posixpath import normpath
from typing import Any, NamedTuple

from pydantic import ValidationError

from stages.domain.core.records import Clip, Record, Reject, reject_order
from stages.ingest import viewing, watching
from stages.ingest.clips import Media, row_reject, without_duplicates
from stages.ingest.curation import Curator
from stages.ingest.parts import to_clips
from stages.ingest.split import assign_splits, recordings
from stages.ingest.viewing import Viewed, Viewer
from stages.lib.annotations.annotation import Annotation
from stages.lib.annotations.formats import read_source
from stages.lib.video import container, encoder, errors, packets, rotation, times
from stages.lib.video import probe as probing
from stages.lib.video.errors import FfmpegMissing, VideoError
from stages.params import IngestParams
from stages.runtime import paths
from stages.runtime.code_digest import code_digest
from stages.runtime.workers import ItemFailure, map_items

#: The modules that decide what a file holds; the journal belongs to them.
EXAMINING = (container, encoder, errors, packets, probing, rotation, times)


class Problem(Record):
    """Reason why a file cannot be used as a clip."""

    reason: str
    detail: str


class FileReport(Record):
    """Content of a file, or the problem that prevents its use. Valid for the file of this path,
    size and modification time."""

    video: str
    size: int
    mtime_ns: int
    media: Media | None = None
    problem: Problem | None = None
    #: What was seen of its frames, if they were looked at.
    viewed: Viewed | None = None


#: Reason of a file that raised an unexpected exception.
UNEXPECTED = "unexpected-error"
#: Reason of a video listed in ``ingest.exclude``. Its file is not read.
REMOVED = "removed-on-request"
#: Constant rate factor of re-encoded files: the loss is not visible.
NORMALISE_CRF = 16


class RowCounts(NamedTuple):
    """Rows of the annotation file: all, and those that gave a clip, or a part of one. The rejects
    count the others (:func:`~stages.lib.annotations.annotation.rows_set_aside`)."""

    read: int
    used: int


class Examined(NamedTuple):
    """Content of a source folder.

    ``clips``: in order of their id; ``rejects``: by reason and name; ``hazards``: counts of files
    that decord must not read, by reason, before re-encoding.
    """

    clips: list[Clip]
    rejects: list[Reject]
    hazards: Counter[str]
    rows: RowCounts


def examine_source(
    params: IngestParams, seed: int, journal: Path | None = None, curator: Curator | None = None
) -> Examined:
    """Read the source folder and examine each file that a usable row is about, once.

    Args:
        params: the source folder, and the limits of a clip.
        seed: seed of the splits.
        journal: file of the reports, beside the folder of re-encoded files; None: examine every
            file and re-encode none.
        curator: keeps what curation finds, if the caller wants to read it.

    Raises:
        SourceError: the source folder cannot be used at all.
    """
    curator = curator or Curator(params)
    rows, rejects, read = read_source(params)
    rows = curator.recordings(rows)
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
    for about_file, report in zip(of_file.values(), _reports(list(of_file), params, journal), strict=True):
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
    kept, duplicates, used = _without_duplicates(made, curator)
    return Examined(kept, sorted(rejects + conflicts + duplicates, key=reject_order), hazards, RowCounts(read, used))


def _without_duplicates(
    made: Sequence[tuple[Annotation, Clip]], curator: Curator
) -> tuple[list[Clip], list[Reject], int]:
    """Drop clips of equal content, and near-duplicates as the curator is told to. Returns the
    others, the rejects, and the number of rows that gave one of the others.

    A row that gave several clips is set aside by the reject of the first of them, if all are
    dropped.
    """
    different, same = without_duplicates(clip for _, clip in made)
    kept, near = curator.without_near_duplicates(different)
    differ, alive = ({id(clip) for clip in clips} for clips in (different, kept))
    used = {row.clip_id: row.rows for row, clip in made if id(clip) in alive}
    in_order = sorted(made, key=lambda pair: pair[1].clip_id)
    dropped = [pair for pair in in_order if id(pair[1]) not in differ]
    dropped += [pair for pair in in_order if id(pair[1]) in differ - alive]
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


def examine(
    video: str, folder: Path, reencoded: Path | None, look: bool = False, timeout_s: float = encoder.TIMEOUT_S
) -> FileReport:
    """Probe, decode and hash one file, and re-encode it into ``reencoded`` where decord must not
    read it; runs in a worker. ``look``: at its frames, while they are decoded."""
    path = folder / video
    identity: dict[str, Any] = {"video": video, "size": 0, "mtime_ns": 0}
    try:
        status = path.stat()
        identity |= {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        media, viewed = _media(video, path, reencoded, look, max(timeout_s, encoder.TIMEOUT_S))
        return FileReport(**identity, media=media, viewed=viewed)
    except VideoError as error:
        return FileReport(**identity, problem=Problem(reason=error.reason, detail=error.detail))
    except FfmpegMissing:
        raise
    except Exception as error:
        # One file must not end the work on all others, whatever a decoder or this code does with
        # it; a full disk is not the file's fault.
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        detail = f"{video}: {type(error).__name__}: {error}; set it aside or re-encode it, and report this"
        return FileReport(**identity, problem=Problem(reason=UNEXPECTED, detail=detail))


def _media(video: str, path: Path, reencoded: Path | None, look: bool, timeout_s: float) -> tuple[Media, Viewed | None]:
    probe, skip, viewed = _validated(video, path, look, timeout_s)
    starts_s = probe.starts_s
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    normalised: str | None = None
    hazards = probe.hazards
    if hazards and reencoded is not None:
        normalised = f"{paths.NORMALISED}/{sha256[:32]}.mp4"
        out = reencoded / normalised
        out.parent.mkdir(parents=True, exist_ok=True)
        encoder.normalise(path, out, *_timing(probe), NORMALISE_CRF, skip)
        before, (probe, _, _) = probe, _validated(video, out)
        if probe.hazards or probe.frames != before.frames:
            change = (
                f"{before.frames} frames became {probe.frames}, {', '.join(probe.hazards) or 'nothing'} against them"
            )
            raise VideoError("normalise-failed", f"{video}: {change}; encode it again by other means")
    media = Media(
        sha256=sha256,
        codec=probe.codec,
        width=probe.width,
        height=probe.height,
        rate=probe.rate,
        frames=probe.slots,
        duration_s=probe.duration_s,
        starts_s=starts_s,
        variable_rate=probe.variable_rate,
        hazards=probe.hazards,
        normalised=normalised,
        normalised_for=hazards if normalised else (),
    )
    return media, viewed


def _validated(
    video: str, path: Path, look: bool = False, timeout_s: float = encoder.TIMEOUT_S
) -> tuple[probing.Probe, int, Viewed | None]:
    """Probe a file and decode it completely. Returns the probe, the number of frames that a decoder
    emits before the first complete one, and what was seen if it was to ``look``.

    Raises:
        VideoError: the number of decoded frames differs from that of its packets.
    """
    probe = probing.probe(path)
    viewer = Viewer(probe.rate, probe.frames) if look else None
    decoded = (
        encoder.validate(path, timeout_s) if viewer is None else watching.validate_watched(path, viewer.see, timeout_s)
    )
    skip = len(decoded) - probe.frames
    if not 0 <= skip <= probe.dropped:
        raise VideoError(
            "frame-count", f"{video}: {probe.frames} frames are stored, {len(decoded)} decode; re-encode it"
        )
    if probe.times is not None and decoded[skip:] != probe.times and probing.UNTRUSTED_TIMES not in probe.hazards:
        probe = probing.probe(path, distrust=True)
    return probe, skip, None if viewer is None else viewer.viewed(probe, skip)


def _timing(probe: probing.Probe) -> tuple[int | Fraction, list[Fraction] | None]:
    """Presentation times of the frames, for :func:`encoder.normalise`: the file's own times where
    they can be trusted."""
    if probe.times is not None and probe.variable_rate:
        return probe.rate, [(time - probe.times[0]) * probe.time_base for time in probe.times]
    if probe.times is None or probing.UNTRUSTED_TIMES in probe.hazards:
        return probe.rate, None
    return probe.times[0], None


def examine_files(videos: Sequence[str], params: IngestParams, journal: Path) -> Iterator[FileReport]:
    """Yield the report of each video of ``ingest.source``, whatever its annotations say, in order.
    A second call goes on where the first one ended."""
    return _reports(videos, params, journal)


def _reports(videos: Sequence[str], params: IngestParams, journal: Path | None) -> Iterator[FileReport]:
    """Yield the report of each video, in order: from the journal if the file has not changed since,
    otherwise by examining it."""
    folder = Path(params.source)
    if journal is None:
        yield from _examined(videos, folder, None, params)
        return
    reencoded = journal.with_suffix("") if params.normalise else None
    earlier = _read_journal(journal, folder, reencoded)
    new_videos = [video for video in videos if video not in earlier]
    if earlier:
        print(f"ingest: {len(earlier):,} of {len(videos):,} files were examined before and have not changed")
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a", encoding="utf-8") as lines:
        # Ends a line that a kill cut short.
        lines.write("\n" if lines.tell() else "")
        new_reports = _examined(new_videos, folder, reencoded, params)
        for video in videos:
            if video in earlier:
                yield earlier[video]
                continue
            report = next(new_reports)
            # A time-out, a dead process or an unexpected error may be due to this machine at this
            # moment: the file is tried again.
            if report.problem is None or report.problem.reason not in ("timeout", "worker-died", UNEXPECTED):
                lines.write(report.model_dump_json(exclude_none=True) + "\n")
                lines.flush()
            yield report


def _examined(
    videos: Sequence[str], folder: Path, reencoded: Path | None, params: IngestParams
) -> Iterator[FileReport]:
    timeout_s = params.timeout_s
    work = partial(examine, folder=folder, reencoded=reencoded, look=params.curate, timeout_s=timeout_s)
    for video, result in zip(videos, map_items(work, videos, "ingest", timeout_s=timeout_s), strict=True):
        if isinstance(result, ItemFailure):
            remedy = "; raise ingest.timeout_s if it is only long" if result.reason == "timeout" else ""
            problem = Problem(reason=result.reason, detail=f"{video}: {result.detail}{remedy}")
            yield FileReport(video=video, size=0, mtime_ns=0, problem=problem)
        else:
            yield result


def journal_file(params: IngestParams) -> Path:
    """Return the journal of the source folder; a change of the examining code starts another
    journal."""
    folder = Path(params.source)
    code = [Path(module.__file__ or "") for module in (*EXAMINING, viewing, watching)] + [Path(__file__)]
    curated = " curated" if params.curate else ""
    identity = f"{folder.resolve()} {params.normalise}{curated} {code_digest(code)}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return paths.EXAMINED / f"{name}.jsonl"


def copy_normalised(clips: Sequence[Clip], journal: Path, folder: Path) -> None:
    """Copy re-encoded files into the folder that the clips' paths are relative to."""
    for path in dict.fromkeys(clip.path for clip in clips if clip.normalised):
        out = folder / path
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(journal.with_suffix("") / path, out)


def _read_journal(journal: Path, folder: Path, reencoded: Path | None) -> dict[str, FileReport]:
    """Read the reports of files that have not changed since. A last line that a kill cut short is
    skipped."""
    reports: dict[str, FileReport] = {}
    if not journal.is_file():
        return reports
    for line in journal.read_text(encoding="utf-8").split("\n"):
        try:
            report = FileReport.model_validate_json(line)
            status = (folder / report.video).stat()
        except (ValidationError, OSError):
            continue
        normalised = report.media.normalised if report.media is not None else None
        missing = normalised is not None and not (reencoded is not None and (reencoded / normalised).is_file())
        if (status.st_size, status.st_mtime_ns) == (report.size, report.mtime_ns) and not missing:
            reports[report.video] = report
        else:
            reports.pop(report.video, None)
    return reports
