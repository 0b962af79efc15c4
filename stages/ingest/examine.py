"""From a source folder to clips: rows are read, files probed, decoded whole and hashed, and whatever cannot be used is set aside.

What was found out about a file is kept in a journal as it is found: an ingest that was killed goes on where it was, and one after a
new video has come examines that video only.
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
from stages.ingest.split import assign_splits
from stages.lib.annotations.annotation import Annotation
from stages.lib.annotations.formats import read_source
from stages.lib.video import encoder, errors, times
from stages.lib.video import probe as probing
from stages.lib.video.errors import FfmpegMissing, VideoError
from stages.params import IngestParams
from stages.runtime import paths
from stages.runtime.code_digest import code_digest
from stages.runtime.workers import ItemFailure, map_items


class Problem(Record):
    """Why a file is no clip."""

    reason: str
    detail: str


class FileReport(Record):
    """What a file holds, or why it cannot be used. It holds for the file of this path, size and time of change."""

    video: str
    size: int
    mtime_ns: int
    media: Media | None = None
    problem: Problem | None = None


#: The reason of a file on which an exception that nobody foresaw was raised.
UNEXPECTED = "unexpected-error"
#: The reason of a video that ``ingest.exclude`` names. Its file is not read.
REMOVED = "removed-on-request"
#: Constant rate factor of a file that is encoded anew: what is lost cannot be seen.
NORMALISE_CRF = 16


def examine_source(params: IngestParams, seed: int, journal: Path | None = None) -> tuple[list[Clip], list[Reject], Counter[str]]:
    """Clips in order of their id, what was set aside by reason and name, and what keeps decord from files (before any was encoded
    anew).

    Args:
        params: the source folder, and what a clip may be.
        seed: draws the splits.
        journal: where findings are kept, and beside it what was encoded anew; None examines every file and encodes none.

    Raises:
        SourceError: the source folder cannot be used at all.
    """
    rows, rejects = read_source(params)
    # Split before anything is excluded: what is removed moves no other clip.
    splits, conflicts = assign_splits(rows, params, seed)
    placed = [row for row in sorted(rows, key=lambda row: row.clip_id) if row.clip_id in splits]
    names = {normpath(video.video) for video in params.exclude}
    removed = [row for row in placed if normpath(row.video) in names]
    rejects += [_removed(row, f"{row.video}: named in ingest.exclude") for row in removed]
    placed = [row for row in placed if normpath(row.video) not in names]
    # The same bytes under another name, which were a duplicate until then.
    contents = {video.sha256: video.video for video in params.exclude if video.sha256 is not None}
    clips: list[Clip] = []
    hazards: Counter[str] = Counter()
    findings = _findings([row.video for row in placed], params, journal)
    for row, found in zip(placed, findings, strict=True):
        if found.media is not None and found.media.sha256 in contents:
            same = contents[found.media.sha256]
            rejects.append(_removed(row, f"{row.video}: holds the same bytes as {same!r}, which is named in ingest.exclude"))
            continue
        if found.media is None:
            assert found.problem is not None
            rejects.append(Reject(item=row.clip_id, reason=found.problem.reason, detail=found.problem.detail))
            continue
        hazards.update(found.media.normalised_for or found.media.hazards)
        clip, set_aside = to_clip(row, splits[row.clip_id], found.media, params)
        rejects += set_aside
        if clip is not None:
            clips.append(clip)
    kept, duplicates = without_duplicates(clips)
    return kept, sorted(rejects + conflicts + duplicates, key=reject_order), hazards


def _removed(row: Annotation, detail: str) -> Reject:
    return Reject(item=row.clip_id, reason=REMOVED, detail=f"{detail}; it was removed on request")


def examine(video: str, folder: Path, anew: Path | None) -> FileReport:
    """Probe, decode and hash one file, and encode it anew into ``anew`` where decord must not read it; runs in a worker."""
    path = folder / video
    about: dict[str, Any] = {"video": video, "size": 0, "mtime_ns": 0}
    try:
        status = path.stat()
        about |= {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        return FileReport(**about, media=_media(video, path, anew))
    except VideoError as error:
        return FileReport(**about, problem=Problem(reason=error.reason, detail=error.detail))
    except FfmpegMissing:
        raise
    except Exception as error:
        # One file must not end the work on all others, whatever a decoder or this code makes of it; a full disk is no fault of the file.
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        detail = f"{video}: {type(error).__name__}: {error}; set it aside or re-encode it, and report this"
        return FileReport(**about, problem=Problem(reason=UNEXPECTED, detail=detail))


def _media(video: str, path: Path, anew: Path | None) -> Media:
    found, skip = _sound(video, path)
    starts_s = found.starts_s
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    normalised: str | None = None
    hazards = found.hazards
    if hazards and anew is not None:
        normalised = f"{paths.NORMALISED}/{sha256[:32]}.mp4"
        out = anew / normalised
        out.parent.mkdir(parents=True, exist_ok=True)
        encoder.normalise(path, out, *_timing(found), NORMALISE_CRF, skip)
        before, (found, _) = found, _sound(video, out)
        if found.hazards or found.frames != before.frames:
            what = f"{before.frames} frames became {found.frames}, {', '.join(found.hazards) or 'nothing'} against them"
            raise VideoError("normalise-failed", f"{video}: {what}; encode it again by other means")
    return Media(
        sha256=sha256,
        codec=found.codec,
        width=found.width,
        height=found.height,
        rate=found.rate,
        frames=found.slots,
        duration_s=found.duration_s,
        starts_s=starts_s,
        variable_rate=found.variable_rate,
        hazards=found.hazards,
        normalised=normalised,
        normalised_for=hazards if normalised else (),
    )


def _sound(video: str, path: Path) -> tuple[probing.Probe, int]:
    """The probe of a file that decodes from beginning to end to as many frames as its packets promise, and how many frames come out of
    a decoder before the first that is whole."""
    found = probing.probe(path)
    shown = encoder.validate(path)
    skip = len(shown) - found.frames
    if not 0 <= skip <= found.dropped:
        raise VideoError("frame-count", f"{video}: {found.frames} frames are stored, {len(shown)} decode; re-encode it")
    if found.times is not None and shown[skip:] != found.times and probing.UNTRUSTED_TIMES not in found.hazards:
        found = probing.probe(path, distrust=True)
    return found, skip


def _timing(found: probing.Probe) -> tuple[int | Fraction, list[Fraction] | None]:
    """When frames are shown, for :func:`encoder.normalise`: by the file's own times where they can be trusted."""
    if found.times is not None and found.variable_rate:
        return found.rate, [(time - found.times[0]) * found.time_base for time in found.times]
    if found.times is None or probing.UNTRUSTED_TIMES in found.hazards:
        return found.rate, None
    return found.times[0], None


def _findings(videos: Sequence[str], params: IngestParams, journal: Path | None) -> Iterator[FileReport]:
    """A finding for each video, in order: from the journal where the file has not changed since, else by looking."""
    folder = Path(params.source)
    if journal is None:
        yield from _look(videos, folder, None, params.timeout_s)
        return
    anew = journal.with_suffix("") if params.normalise else None
    known = _read_journal(journal, folder, anew)
    unknown = [video for video in videos if video not in known]
    if known:
        print(f"ingest: {len(known):,} of {len(videos):,} files were examined before and have not changed")
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a", encoding="utf-8") as kept:
        # Ends a line that a kill cut short.
        kept.write("\n" if kept.tell() else "")
        looked = _look(unknown, folder, anew, params.timeout_s)
        for video in videos:
            if video in known:
                yield known[video]
                continue
            found = next(looked)
            # A time-out, a dead process or an error that nobody foresaw says something of this machine at this moment: it is tried again.
            if found.problem is None or found.problem.reason not in ("timeout", "worker-died", UNEXPECTED):
                kept.write(found.model_dump_json(exclude_none=True) + "\n")
                kept.flush()
            yield found


def _look(videos: Sequence[str], folder: Path, anew: Path | None, timeout_s: float) -> Iterator[FileReport]:
    work = partial(examine, folder=folder, anew=anew)
    for video, result in zip(videos, map_items(work, videos, "ingest", timeout_s=timeout_s), strict=True):
        if isinstance(result, ItemFailure):
            remedy = "; raise ingest.timeout_s if it is only long" if result.reason == "timeout" else ""
            lost = Problem(reason=result.reason, detail=f"{video}: {result.detail}{remedy}")
            yield FileReport(video=video, size=0, mtime_ns=0, problem=lost)
        else:
            yield result


def journal_file(params: IngestParams) -> Path:
    """Where the findings about the source folder are kept: another code that examines has another journal."""
    folder = Path(params.source)
    code = [Path(module.__file__ or "") for module in (encoder, errors, probing, times)] + [Path(__file__)]
    about = f"{folder.resolve()} {params.normalise} {code_digest(code)}"
    name = hashlib.sha256(about.encode()).hexdigest()[:16]
    return paths.EXAMINED / f"{name}.jsonl"


def copy_normalised(clips: Sequence[Clip], journal: Path, folder: Path) -> None:
    """Put what was encoded anew into the folder that the clips' paths are relative to."""
    for clip in clips:
        if clip.normalised:
            out = folder / clip.path
            out.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(journal.with_suffix("") / clip.path, out)


def _read_journal(journal: Path, folder: Path, anew: Path | None) -> dict[str, FileReport]:
    """Findings about files that have not changed since. A last line that a kill cut short is no finding."""
    known: dict[str, FileReport] = {}
    if not journal.is_file():
        return known
    for line in journal.read_text(encoding="utf-8").split("\n"):
        try:
            found = FileReport.model_validate_json(line)
            status = (folder / found.video).stat()
        except (ValidationError, OSError):
            continue
        normalised = found.media.normalised if found.media is not None else None
        lost = normalised is not None and not (anew is not None and (anew / normalised).is_file())
        if (status.st_size, status.st_mtime_ns) == (found.size, found.mtime_ns) and not lost:
            known[found.video] = found
        else:
            known.pop(found.video, None)
    return known
