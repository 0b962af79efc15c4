"""Resolve a removal request to videos, and find their use: the work tree's clips and samples, and
every registered version."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from posixpath import normpath

from stages.domain.core.records import SPLITS, Sample
from stages.errors import InputError
from stages.ingest.source import open_source
from stages.lib.annotations.annotation import Annotation
from stages.lib.rows.jsonl import iterate_rows
from stages.lib.video.folders import digest_of
from stages.params import ExcludedVideo, IngestParams
from stages.runtime import paths as layout
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.removals import Manifests, Row, holds, manifest_rows
from stages.tracking.registry.versions import Version
from stages.tracking.session import Session


class RemovalError(InputError, ValueError):
    """A named video is ambiguous or does not exist."""

    status = 2


@dataclass(frozen=True)
class Video:
    """A video of a request: its path in the source folder, and an entry for each content that was
    ever ingested under it.

    ``clip_ids``: the clips that are, or were, cut from it; ``splits``: of the present ones.
    """

    path: str
    videos: tuple[ExcludedVideo, ...]
    clip_ids: tuple[str, ...]
    splits: tuple[str, ...]


@dataclass(frozen=True)
class Samples:
    """Samples of the work tree that use one of the videos, by (split, task), and the number of all
    samples."""

    showing: Mapping[tuple[str, str], int]
    total: int


def find(session: Session, names: Sequence[str], versions: Sequence[Version]) -> list[Video]:
    """Find the named videos, each by its path in the source folder, the path of its file, the id of
    a clip, or its SHA-256.

    Annotations, the present manifest and the manifests of ``versions`` are searched, so a video
    that is no longer in the source folder is found as well.

    Raises:
        RemovalError: a name matches no video, or several (an id that two sources use).
    """
    ingest = session.params.ingest.below(session.root)
    source = Path(ingest.source)
    rows = _annotations(ingest)
    present = list(_present(session.root))
    rows_of_clips = list(dict.fromkeys([*present, *_earlier(session, versions)]))
    videos_by_path: dict[str, Video] = {}
    for name in names:
        path = _meant(name, source, rows, rows_of_clips)
        ids = {row.clip_id for row in rows if normpath(row.video) == path}
        # A re-encoded clip has another path: its id names its source.
        clips = [
            clip
            for clip in rows_of_clips
            if (not ids.isdisjoint(_row_ids(clip)) if clip.normalised else normpath(clip.path) == path)
        ]
        contents: list[str | None] = list(dict.fromkeys(clip.sha256 for clip in clips)) or [_hash(source / path)]
        videos = tuple(ExcludedVideo(video=path, sha256=content) for content in contents)
        clips = [clip for clip in rows_of_clips if any(holds(clip, video) for video in videos)]
        ids |= {clip.clip_id for clip in clips}
        splits = sorted({clip.split for clip in clips if clip in present})
        videos_by_path[path] = Video(path, videos, tuple(sorted(ids)), tuple(splits))
    return list(videos_by_path.values())


def _annotations(params: IngestParams) -> list[Annotation]:
    from stages.lib.annotations.annotation import SourceError
    from stages.runtime.sources.failures import SourceAccessError

    try:
        return open_source(params).read().rows
    except (SourceError, SourceAccessError):
        return []  # Empty, or not here: manifests may have the name.


def _present(root: Path) -> Iterator[Row]:
    path = root / layout.CLIPS / layout.MANIFEST_FILE
    if path.is_file():
        yield from manifest_rows(path.read_bytes(), str(path.parent))


def _earlier(session: Session, versions: Sequence[Version]) -> Iterator[Row]:
    manifests = Manifests(session.content)
    for oid in dict.fromkeys(oid for version in versions if (oid := version.data.get(layout.CLIPS.as_posix()))):
        try:
            yield from manifests.rows(oid)
        except TrackingError:
            continue  # Reported for each version, as unknown.


def _meant(name: str, source: Path, rows: Sequence[Annotation], clips: Sequence[Row]) -> str:
    """Resolve a name to a path in the source folder: as a path first, then as a content hash, then
    as an id."""
    path = Path(name).expanduser()
    relative = normpath(path.resolve().relative_to(source.resolve()).as_posix() if _below(path, source) else name)
    paths = {normpath(row.video) for row in rows} | {normpath(clip.path) for clip in clips if not clip.normalised}
    if relative in paths:
        return relative
    named = {row.clip_id: normpath(row.video) for row in rows}
    matches = {_own_path(clip, named) for clip in clips if name == clip.sha256}
    matches = matches or {normpath(row.video) for row in rows if row.clip_id == name}
    matches = matches or {_own_path(clip, named) for clip in clips if name == clip.clip_id}
    if len(matches) == 1:
        return matches.pop()
    if matches:
        raise RemovalError(
            "video", f"{name!r} means several: {', '.join(map(repr, sorted(matches)[:4]))}", "name the paths"
        )
    raise RemovalError(
        "video",
        f"{name!r} is neither a path in {source}, nor an id or a SHA-256 of a clip that annotations or manifests know",
        "name it as the annotation file does",
    )


def _own_path(clip: Row, named: Mapping[str, str]) -> str:
    """Path of a clip in the source folder, now or in the past."""
    if not clip.normalised:
        return normpath(clip.path)
    return next((named[name] for name in _row_ids(clip) if name in named), clip.path)


def _row_ids(clip: Row) -> tuple[str, str]:
    """Ids that the row of a clip may have: the clip's, or, for a part of a recording that ingest
    has divided, the one before its times."""
    return clip.clip_id, clip.clip_id.rpartition("@")[0]


def _below(path: Path, folder: Path) -> bool:
    return path.is_absolute() and path.resolve().is_relative_to(folder.resolve())


def _hash(path: Path) -> str | None:
    if path.is_dir():
        return digest_of(path)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def samples_showing(root: Path, clip_ids: frozenset[str]) -> Samples | None:
    """Find samples of the work tree that use one of the clips; None if there are no samples."""
    folder = root / layout.SAMPLES
    if not (folder / layout.SUMMARY_FILE).is_file():
        return None
    showing: Counter[tuple[str, str]] = Counter()
    total = 0
    for split in SPLITS:
        for file in sorted((folder / split).glob("*.jsonl")):
            for sample in iterate_rows(file, Sample):
                total += 1
                showing[split, sample.task] += not clip_ids.isdisjoint(sample.timeline.clip_ids)
    return Samples({key: count for key, count in showing.items() if count}, total)
