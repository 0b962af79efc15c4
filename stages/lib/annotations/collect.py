"""Collection of the rows of an annotation file: those about one clip become one, and rows without a
usable video are rejected."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from stages.domain.core.records import Reject
from stages.lib.annotations.annotation import PART_REASONS, Annotation, Found, reject, videos_in
from stages.lib.annotations.links import Links

#: Fields of which a clip has one value. ``caption`` is not among them: a second one is a further
#: caption.
_SINGLE = ("source", "split", "label", "licence", "length_s", "rate")
#: Fields of which a clip may have several values, and the name of one in messages.
_SEVERAL = {
    "events": "event",
    "qa": "question",
    "open_qa": "question",
    "subjects": "subject",
    "captions": "caption",
}


class Source(NamedTuple):
    """Content of an annotation file.

    ``rows``: one for each clip; ``rejects``: of rows, parts of rows and files; ``read``: number of
    rows in the file. Each of these is in one of ``rows`` (``Annotation.rows`` counts them) or in
    one reject (:func:`~stages.lib.annotations.annotation.rows_rejected`). ``unused``: columns that
    a mapping leaves out, in order of appearance.
    """

    rows: list[Annotation]
    rejects: list[Reject]
    read: int
    unused: tuple[str, ...] = ()


class Format(NamedTuple):
    """An annotation format.

    ``name``: its name in ``ingest.format``; ``read``: reads a file in a folder; ``file``: the usual
    name of that file.
    """

    name: str
    read: Callable[[Path, str], Source]
    file: str


def usable(found: Iterable[Found], folder: Path, file: str) -> Source:
    """Select the rows whose video is in ``folder``, and join those about one clip.

    Rows are about one clip if they name the same part of the same video. Reasons beside the
    readers' own: ``outside-folder``, ``missing-file``, ``duplicate-id`` (two clips of one id, or
    one clip with two), ``conflicting-row`` (another split, label … of a clip), ``repeated-part``
    (an event, a question … that the clip has already), ``no-annotation`` (a video that no row of
    ``file`` names).
    """
    rows: dict[tuple[Any, ...], Annotation | _Joined] = {}
    rejects: list[Reject] = []
    mentioned: set[str] = set()
    of_id: dict[str, str] = {}
    links = Links(folder)
    misplaced = cache(partial(_misplaced, folder=folder, links=links))  # many rows may be about one video
    read = 0
    for where, row, videos, parts in found:
        read += 1
        mentioned |= videos
        problem: Reject | None = None
        if isinstance(row, Reject):
            problem = _of_whole_row(row)
        elif (why := misplaced(row.video)) is not None:
            problem = reject(where, *why)
        if isinstance(row, Annotation) and problem is None:
            key = (row.video, row.start, row.end)
            first = rows.get(key)
            if first is not None:
                joined = rows[key] = _Joined(first) if isinstance(first, Annotation) else first
                repeated = joined.add(row, where)
                if isinstance(repeated, Reject):
                    problem = repeated
                else:
                    rejects += [*parts, *repeated]
            elif (earlier := of_id.get(row.clip_id)) is not None:
                detail = f"id {row.clip_id!r} stands in {earlier} already; give each row an id of its own"
                problem = reject(where, "duplicate-id", detail)
            else:
                rows[key] = row
                of_id[row.clip_id] = where
                rejects += parts
        if problem is not None:
            rejects.append(problem)
    for stray in sorted(videos_in(folder) - mentioned):
        detail = f"{stray}: {file} has no usable row for it; add one, or move the file away"
        rejects.append(Reject(item=stray, reason="no-annotation", detail=detail))
    return Source([row if isinstance(row, Annotation) else row.row() for row in rows.values()], rejects, read)


def _of_whole_row(problem: Reject) -> Reject:
    """Count the row of a reject whose reason is that of a part: with its only part, all of it is
    rejected."""
    is_part = problem.reason in PART_REASONS and problem.rows is None
    return problem.model_copy(update={"rows": 1}) if is_part else problem


class _Joined:
    """Rows about one clip, of which there may be thousands: no row is compared with each earlier
    one, and nothing is copied before the last."""

    def __init__(self, first: Annotation) -> None:
        self._first, self._rows, self._caption = first, first.rows, first.caption
        self._single = {field: getattr(first, field) for field in _SINGLE}
        self._several: dict[str, list[Any]] = {field: list(getattr(first, field)) for field in _SEVERAL}
        self._known = {field: set(parts) for field, parts in self._several.items()}

    def add(self, row: Annotation, where: str) -> list[Reject] | Reject:
        """Add a row: the rejects of parts that the clip has already, or the reject of the row,
        which contradicts the first."""
        first = self._first
        if row.id is not None and row.clip_id != first.clip_id:
            detail = (
                f"video {row.video!r} stands in {first.where} already, as clip {first.clip_id!r}; give one id to all"
                " rows about one clip, or start and end to parts of it"
            )
            return reject(where, "duplicate-id", detail)
        told = {field: theirs for field in _SINGLE if (theirs := getattr(row, field)) is not None}
        for field, theirs in told.items():
            if (ours := self._single[field]) not in (None, theirs):
                detail = (
                    f"{field}: {theirs!r}, and {first.where} says {ours!r} of the same clip ({row.video!r}); correct"
                    " one of them"
                )
                return reject(where, "conflicting-row", detail)
        self._single |= told
        self._rows += row.rows
        captions = row.captions if row.caption is None else (row.caption, *row.captions)
        if self._caption is None and captions:
            self._caption, captions = captions[0], captions[1:]
        repeated = []
        for field, part in _SEVERAL.items():
            known = self._known[field]
            for value in captions if field == "captions" else getattr(row, field):
                if value in known or (field == "captions" and value == self._caption):
                    text = value if isinstance(value, str) else value.model_dump_json(exclude_none=True)
                    detail = f"{row.video}: the clip has this {part} already ({first.where}): {text:.200}"
                    repeated.append(reject(where, "repeated-part", detail))
                else:
                    known.add(value)
                    self._several[field].append(value)
        return repeated

    def row(self) -> Annotation:
        """The clip's row."""
        several = {field: tuple(parts) for field, parts in self._several.items()}
        changes = {**self._single, **several, "caption": self._caption, "rows": self._rows}
        return self._first.model_copy(update=changes)


def _misplaced(video: str, folder: Path, links: Links) -> tuple[str, str] | None:
    """Check a path from an annotation, which is data: it may name a file inside the folder and
    nothing else. Returns reason and detail of a reject, or None."""
    path = PurePosixPath(video)
    if path.is_absolute() or ".." in path.parts or "\\" in video or "\0" in video:
        detail = f"video: {video!r} leaves the folder; name a file inside it, relative, with forward slashes"
        return "outside-folder", detail
    target = folder / path
    try:
        leads_out = links.lead_out(target)
    # A name that cannot be passed to the file system (a lone surrogate) raises ValueError.
    except (OSError, RuntimeError, ValueError) as error:
        return "missing-file", f"video: {video!r} does not exist in the folder ({_reason(error)})"
    if leads_out:
        detail = (
            f"video: {video!r} is a link that leaves the folder; link the folder that the file stands in, or name"
            " that as source"
        )
        return "outside-folder", detail
    if target.is_dir():
        return pictures_elsewhere(video, target, links)
    if not target.is_file():
        return "missing-file", f"video: {video!r} is not a file"
    return None


def pictures_elsewhere(video: str, folder: Path, links: Links) -> tuple[str, str] | None:
    """Check the links in a folder that is a video in pictures, as the folder itself is checked:
    reason and detail of a reject, or None."""
    try:
        with os.scandir(folder) as entries:
            linked = sorted(entry.name for entry in entries if entry.is_symlink())
    except OSError as error:
        return "missing-file", f"video: {video!r} cannot be read ({_reason(error)})"
    for name in linked:
        try:
            leads_out = links.lead_out(folder / name)
        except (OSError, RuntimeError) as error:
            return "missing-file", f"video: {video}/{name} does not exist ({_reason(error)})"
        if leads_out:
            detail = f"video: {video}/{name} is a link that leaves the folder; copy the picture"
            return "outside-folder", detail
    return None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
