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
from typing import Any

from pydantic import ValidationError

from stages.domain.core.records import Clip, Record, Reject, reject_order
from stages.ingest.clips import Media, to_clip, without_duplicates
from stages.ingest.files import Files, LocatedFile
from stages.ingest.source import open_source
from stages.ingest.split import assign_splits
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


#: Reason of a file that raised an unexpected exception.
UNEXPECTED = "unexpected-error"
#: Reason of a video listed in ``ingest.exclude``. Its file is not read.
REMOVED = "removed-on-request"
#: Constant rate factor of re-encoded files: the loss is not visible.
NORMALISE_CRF = 16


def examine_source(
    params: IngestParams, seed: int, journal: Path | None = None
) -> tuple[list[Clip], list[Reject], Counter[str]]:
    """Return clips in order of their id, rejects by reason and name, and counts of hazards for
    decord (before re-encoding).

    Args:
        params: the source folder, and the limits of a clip.
        seed: seed of the splits.
        journal: file of the reports, beside the folder of re-encoded files; None: examine every
            file and re-encode none.

    Raises:
        SourceError: the source folder cannot be used at all.
    """
    source = open_source(params)
    rows, rejects, _ = read_source(source.params)
    rejects += source.rejects
    # Splits are assigned before anything is excluded, so that a removal moves no other clip.
    splits, conflicts = assign_splits(rows, params, seed)
    placed = [row for row in sorted(rows, key=lambda row: row.clip_id) if row.clip_id in splits]
    names = {normpath(video.video) for video in params.exclude}
    removed = [row for row in placed if normpath(row.video) in names]
    rejects += [_removed(row, f"{row.video}: named in ingest.exclude") for row in removed]
    placed = [row for row in placed if normpath(row.video) not in names]
    # Also the same bytes under another name, which were rejected as a duplicate before.
    contents = {video.sha256: video.video for video in params.exclude if video.sha256 is not None}
    clips: list[Clip] = []
    hazards: Counter[str] = Counter()
    reports = _reports([row.video for row in placed], params, source.files, journal)
    for row, report in zip(placed, reports, strict=True):
        if report.media is not None and report.media.sha256 in contents:
            same = contents[report.media.sha256]
            rejects.append(
                _removed(row, f"{row.video}: holds the same bytes as {same!r}, which is named in ingest.exclude")
            )
            continue
        if report.media is None:
            assert report.problem is not None
            rejects.append(Reject(item=row.clip_id, reason=report.problem.reason, detail=report.problem.detail))
            continue
        hazards.update(report.media.normalised_for or report.media.hazards)
        clip, set_aside = to_clip(row, splits[row.clip_id], report.media, params)
        rejects += set_aside
        if clip is not None:
            clips.append(clip)
    kept, duplicates = without_duplicates(clips)
    return kept, sorted(rejects + conflicts + duplicates, key=reject_order), hazards


def _removed(row: Annotation, detail: str) -> Reject:
    return Reject(item=row.clip_id, reason=REMOVED, detail=f"{detail}; it was removed on request")


def examine(file: str | LocatedFile, folder: Path, reencoded: Path | None) -> FileReport:
    """Probe, decode and hash one file, and re-encode it into ``reencoded`` where decord must not
    read it; runs in a worker. ``file``: its name in ``folder``, or where it was brought to."""
    video = file if isinstance(file, str) else file.name
    identity: dict[str, Any] = {"video": video, "size": 0, "mtime_ns": 0}
    try:
        if isinstance(file, str):
            path = folder / file
            status = path.stat()
            stamp = status.st_size, status.st_mtime_ns
        else:
            path, stamp = file.here(), file.stamp
        identity |= {"size": stamp[0], "mtime_ns": stamp[1]}
        return FileReport(**identity, media=_media(video, path, reencoded))
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


def _media(video: str, path: Path, reencoded: Path | None) -> Media:
    probe, skip = _validated(video, path)
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
        before, (probe, _) = probe, _validated(video, out)
        if probe.hazards or probe.frames != before.frames:
            change = (
                f"{before.frames} frames became {probe.frames}, {', '.join(probe.hazards) or 'nothing'} against them"
            )
            raise VideoError("normalise-failed", f"{video}: {change}; encode it again by other means")
    return Media(
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


def _validated(video: str, path: Path) -> tuple[probing.Probe, int]:
    """Probe a file and decode it completely. Returns the probe, and the number of frames that a
    decoder emits before the first complete one.

    Raises:
        VideoError: the number of decoded frames differs from that of its packets.
    """
    probe = probing.probe(path)
    decoded = encoder.validate(path)
    skip = len(decoded) - probe.frames
    if not 0 <= skip <= probe.dropped:
        raise VideoError(
            "frame-count", f"{video}: {probe.frames} frames are stored, {len(decoded)} decode; re-encode it"
        )
    if probe.times is not None and decoded[skip:] != probe.times and probing.UNTRUSTED_TIMES not in probe.hazards:
        probe = probing.probe(path, distrust=True)
    return probe, skip


def _timing(probe: probing.Probe) -> tuple[int | Fraction, list[Fraction] | None]:
    """Presentation times of the frames, for :func:`encoder.normalise`: the file's own times where
    they can be trusted."""
    if probe.times is not None and probe.variable_rate:
        return probe.rate, [(time - probe.times[0]) * probe.time_base for time in probe.times]
    if probe.times is None or probing.UNTRUSTED_TIMES in probe.hazards:
        return probe.rate, None
    return probe.times[0], None


def _reports(
    videos: Sequence[str], params: IngestParams, files: Files | None, journal: Path | None
) -> Iterator[FileReport]:
    """Yield the report of each video, in order: from the journal if the file has not changed since,
    otherwise by examining it."""
    where = Path(params.source) if files is None else files
    if journal is None:
        yield from _examined(videos, where, None, params.timeout_s)
        return
    reencoded = journal.with_suffix("") if params.normalise else None
    earlier = _read_journal(journal, where, reencoded)
    new_videos = [video for video in videos if video not in earlier]
    if earlier:
        print(f"ingest: {len(earlier):,} of {len(videos):,} files were examined before and have not changed")
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a", encoding="utf-8") as lines:
        # Ends a line that a kill cut short.
        lines.write("\n" if lines.tell() else "")
        new_reports = _examined(new_videos, where, reencoded, params.timeout_s)
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
    videos: Sequence[str], files: Path | Files, reencoded: Path | None, timeout_s: float
) -> Iterator[FileReport]:
    if isinstance(files, Path):
        yield from _examined_here(videos, files, reencoded, timeout_s)
        return
    for batch in files.batches(videos):
        yield from _examined_here(batch, Path(), reencoded, timeout_s)


def _examined_here(
    files: Sequence[str | LocatedFile], folder: Path, reencoded: Path | None, timeout_s: float
) -> Iterator[FileReport]:
    work = partial(examine, folder=folder, reencoded=reencoded)
    for file, result in zip(files, map_items(work, files, "ingest", timeout_s=timeout_s), strict=True):
        video = file if isinstance(file, str) else file.name
        if isinstance(result, ItemFailure):
            remedy = "; raise ingest.timeout_s if it is only long" if result.reason == "timeout" else ""
            problem = Problem(reason=result.reason, detail=f"{video}: {result.detail}{remedy}")
            yield FileReport(video=video, size=0, mtime_ns=0, problem=problem)
        else:
            yield result


def journal_file(params: IngestParams) -> Path:
    """Return the journal of the source folder; a change of the examining code starts another
    journal."""
    where = Path(params.source).resolve() if params.is_plain_folder else params.roots
    code = [Path(module.__file__ or "") for module in EXAMINING] + [Path(__file__)]
    identity = f"{where} {params.normalise} {code_digest(code)}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return paths.EXAMINED / f"{name}.jsonl"


def copy_normalised(clips: Sequence[Clip], journal: Path, folder: Path) -> None:
    """Copy re-encoded files into the folder that the clips' paths are relative to."""
    for clip in clips:
        if clip.normalised:
            out = folder / clip.path
            out.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(journal.with_suffix("") / clip.path, out)


def _read_journal(journal: Path, files: Path | Files, reencoded: Path | None) -> dict[str, FileReport]:
    """Read the reports of files that have not changed since. A last line that a kill cut short is
    skipped."""
    reports: dict[str, FileReport] = {}
    if not journal.is_file():
        return reports
    for line in journal.read_text(encoding="utf-8").split("\n"):
        try:
            report = FileReport.model_validate_json(line)
            stamp = _stamp(files, report.video)
        except (ValidationError, OSError):
            continue
        normalised = report.media.normalised if report.media is not None else None
        missing = normalised is not None and not (reencoded is not None and (reencoded / normalised).is_file())
        if stamp == (report.size, report.mtime_ns) and not missing:
            reports[report.video] = report
        else:
            reports.pop(report.video, None)
    return reports


def _stamp(files: Path | Files, video: str) -> tuple[int, int] | None:
    """Size and modification time of a file, or what stands for them where it was fetched."""
    if not isinstance(files, Path):
        return files.stamp(video)
    status = (files / video).stat()
    return status.st_size, status.st_mtime_ns
