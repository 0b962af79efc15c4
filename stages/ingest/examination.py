"""Examination of one file: probe, complete or sampled decoding, hash, and re-encoding where decord
must not read it; also a look at every frame, if asked for."""

from __future__ import annotations

import errno
import hashlib
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stages.domain.core.records import Exact, Record
from stages.ingest import conversion
from stages.ingest.clips import Media
from stages.ingest.curation import watching
from stages.ingest.curation.viewing import Viewed, Viewer
from stages.ingest.files import LocatedFile, state_of
from stages.lib.video import container, encoder, errors, folders, packets, pictures, rotation, times
from stages.lib.video import probe as probing
from stages.lib.video.errors import FfmpegMissing, VideoError
from stages.lib.video.pictures import Look
from stages.lib.video.probe import Probe
from stages.runtime import paths
from stages.runtime.workers import advance

#: The modules that decide what a file holds; the journal belongs to them.
EXAMINING = (container, encoder, errors, folders, packets, pictures, probing, rotation, times)


class Problem(Record):
    """Reason why a file cannot be used as a clip."""

    reason: str
    detail: str


class FileReport(Record):
    """Content of a file, or the problem that prevents its use. Valid for the file of this path,
    size and modification time, examined in this way.

    A frame folder has the size of all its files, and the latest of their times.
    """

    video: str
    size: int
    mtime_ns: int
    #: Every frame was to be decoded.
    whole: bool
    #: Stated frames per second (:class:`Asked`).
    rate: Exact | None = None
    media: Media | None = None
    problem: Problem | None = None
    #: What was seen of its frames, if they were watched.
    viewed: Viewed | None = None


#: Reason of a file that raised an unexpected exception.
UNEXPECTED = "unexpected-error"
#: Reasons that may be due to this machine at this moment: such a file is tried again.
TRANSIENT = frozenset(("timeout", "worker-died", UNEXPECTED))
#: Constant rate factor of re-encoded files: the loss is not visible.
NORMALISE_CRF = 16


class Asked(NamedTuple):
    """A file or frame folder to examine.

    ``rate``: frames per second that its row states; ``frame_rate``: those of a video that does not
    tell its own; ``whole``: decode every frame, not only a few pictures; ``watch``: look at every
    frame, too; ``file``: where it was brought to, if it is not in the source folder.
    """

    video: str
    rate: Fraction | None = None
    frame_rate: Fraction | None = None
    whole: bool = True
    watch: bool = False
    file: LocatedFile | None = None


def examine(asked: Asked, folder: Path, reencoded: Path | None, timeout_s: float = encoder.TIMEOUT_S) -> FileReport:
    """Probe, decode and hash one file, and re-encode it into ``reencoded`` where decord must not
    read it; runs in a worker. ``timeout_s``: time limit for decoding it, if longer than usual."""
    video = asked.video
    identity: dict[str, Any] = {"video": video, "size": 0, "mtime_ns": 0, "whole": asked.whole, "rate": asked.rate}
    try:
        if asked.file is None:
            path = folder / video
            stamp = state_of(path)
        else:
            path, stamp = asked.file.here(), asked.file.stamp
        identity |= {"size": stamp[0], "mtime_ns": stamp[1]}
        media, viewed = _media(asked, path, reencoded, max(timeout_s, encoder.TIMEOUT_S))
        return FileReport(**identity, media=media, viewed=viewed)
    except VideoError as error:
        return FileReport(**identity, problem=Problem(reason=error.reason, detail=error.detail))
    except (FfmpegMissing, ImportError):
        raise  # of this machine
    except Exception as error:
        # One file must not end the work on all others, whatever a decoder or this code does with
        # it; a full disk is not the file's fault.
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        detail = f"{video}: {type(error).__name__}: {error}; set it aside or re-encode it, and report this"
        return FileReport(**identity, problem=Problem(reason=UNEXPECTED, detail=detail))


class _Validated(NamedTuple):
    """Facts about a file. ``skip``: number of frames that a decoder emits before the first complete
    one; ``viewed``: what was seen, if it was watched."""

    probe: Probe
    skip: int
    look: Look
    viewed: Viewed | None


def _media(asked: Asked, path: Path, reencoded: Path | None, timeout_s: float) -> tuple[Media, Viewed | None]:
    video, whole = asked.video, asked.whole
    if path.is_dir():
        found, sha256 = _validated_folder(asked, path), folders.digest_of(path)
    else:
        found = _validated(asked, path, timeout_s)
        if found.probe.hazards and reencoded is not None and not whole:
            # To be encoded again it is decoded anyway, and then as it would be by default.
            found = _validated(asked._replace(whole=True), path, timeout_s)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    probe, starts_s, hazards = found.probe, found.probe.starts_s, found.probe.hazards
    normalised: str | None = None
    if hazards and reencoded is not None:
        normalised = _normalised_name(sha256, probe)
        out = reencoded / normalised
        out.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            conversion.normalise_folder(path, out, probe, NORMALISE_CRF)
        else:
            conversion.normalise(path, out, probe, found.look, NORMALISE_CRF, found.skip)
        before, probe = probe, _validated(Asked(video, whole=whole), out, timeout_s).probe
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
    return media, found.viewed


def _normalised_name(sha256: str, probe: Probe) -> str:
    """Path of a re-encoded file, by the content of its source; its rate counts where that is not in
    the content."""
    if probe.times is None:
        sha256 = hashlib.sha256(f"{sha256} {probe.rate}".encode()).hexdigest()
    return f"{paths.NORMALISED}/{sha256[:32]}.mp4"


def _validated_folder(asked: Asked, path: Path) -> _Validated:
    """Probe a frame folder and decode all of its pictures, or a few."""
    probe = folders.probe_folder(path, asked.rate or asked.frame_rate)
    if not asked.watch:
        folders.validate_folder(path, asked.whole)
        return _Validated(probe, 0, Look(), None)
    viewer = Viewer(probe.rate, probe.frames)
    watching.validate_folder_watched(path, viewer.see)
    return _Validated(probe, 0, Look(), viewer.viewed(probe, 0))


def _validated(asked: Asked, path: Path, timeout_s: float) -> _Validated:
    """Probe a file and decode all of it, or a few of its pictures.

    Raises:
        VideoError: a picture is damaged, or the number of decoded frames differs from that of its
            packets.
    """
    video = asked.video
    probe = _probed(path, asked.rate, asked.frame_rate)
    if not asked.whole and not _to_decode_whole(probe):
        sampled = pictures.look_at_samples(path)
        if sampled is not None:
            return _Validated(replace(probe, hazards=(*probe.hazards, *sampled.hazards)), 0, sampled, None)
    viewer = Viewer(probe.rate, probe.frames) if asked.watch else None
    if viewer is None:
        decoded = encoder.validate(path, timeout_s)
    else:
        decoded = watching.validate_watched(path, partial(_see, viewer, probe), timeout_s)
    skip = len(decoded.times) - probe.frames
    if not 0 <= skip <= probe.dropped:
        raise VideoError(
            "frame-count", f"{video}: {probe.frames} frames are stored, {len(decoded.times)} decode; re-encode it"
        )
    if probe.times is not None and decoded.times[skip:] != probe.times and probing.UNTRUSTED_TIMES not in probe.hazards:
        probe = probing.probe(path, distrust=True)
    look = pictures.first_look(path)
    look = look._replace(interlaced=look.interlaced or decoded.interlaced)
    viewed = None if viewer is None else viewer.viewed(probe, skip)
    return _Validated(replace(probe, hazards=(*probe.hazards, *look.hazards)), skip, look, viewed)


def _see(viewer: Viewer, probe: Probe, frames: npt.NDArray[np.uint8]) -> None:
    """Show frames to the viewer, and tell how many seconds it has seen."""
    viewer.see(frames)
    advance(float(viewer.seen / probe.rate))


#: Hazards of which a few pictures cannot tell whether they are faults: the header counts other
#: frames than there are (also where the end is missing), or key frames do not decode by themselves.
_DOUBTFUL = frozenset(("frame-count", "recovery-points"))


def _to_decode_whole(probe: Probe) -> bool:
    """True if a sampled validation decodes the whole file, too: in doubt, and small files. decord
    reads those, and shows a damaged frame without a word."""
    small = probe.frames * probe.width * probe.height <= probing.DECORD_PIXELS
    return small or probe.dropped > 0 or not _DOUBTFUL.isdisjoint(probe.hazards)


def _probed(path: Path, stated: Fraction | None, default: Fraction | None) -> Probe:
    try:
        return probing.probe(path, rate=stated)
    except VideoError as error:
        if error.reason != "no-frame-rate" or default is None or stated is not None:
            raise
        return probing.probe(path, rate=default)
