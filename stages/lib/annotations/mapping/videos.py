"""The file of a row, among those of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from stages.domain.core.records import Reject
from stages.lib.annotations.annotation import VIDEO_SUFFIXES, reject, short
from stages.lib.annotations.files import VideoFiles
from stages.lib.annotations.mapping.columns import Entry, holds, value_of
from stages.lib.annotations.mapping.schema import Video


class Located(NamedTuple):
    """A file that a row names. ``cut``: it is the part already that the row is about."""

    video: str
    cut: bool


class Locator:
    """Finds the files of rows; counts what it found, for an error where nothing fits."""

    def __init__(self, candidates: Sequence[Video], folder: Path, files: VideoFiles) -> None:
        self._candidates, self._folder, self._files = candidates, folder, files
        self.found = 0
        #: What the first row without a file looked for.
        self.example: str | None = None

    def locate(self, entry: Entry, where: str) -> Located | Reject:
        """Find the file of a row by the first name under which there is one.

        Raises:
            ColumnProblem: a column of a name is missing.
        """
        stems: list[str] = []
        paths: list[str] = []
        cuts: dict[str, bool] = {}
        for candidate in self._candidates:
            if not holds(entry, candidate.when):
                continue
            value = value_of(entry, candidate.path)
            column = candidate.path.removesuffix("?")
            if isinstance(value, list | tuple):
                if len(value) != 1:
                    reason = "several-videos" if value else "no-video"
                    detail = f"{column}: the row names {len(value)} videos; a row is about one"
                    return reject(where, reason, detail)
                value = value[0]
            if isinstance(value, list | tuple):
                detail = f"{column}: {short(value)} lists pictures of a video; name a video file"
                return reject(where, "no-video", detail)
            if value is None:
                continue
            if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
                return reject(where, "bad-annotation", f"{column}: need the name of a video (value {short(value)})")
            name = candidate.add + _normal(str(value)).removeprefix(candidate.strip)
            find = candidate.find or ("path" if PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES else "stem")
            video = self._look(name, find)
            if isinstance(video, list):
                return reject(where, "ambiguous-file", f"{name}: {', '.join(video)} bear this name; keep one of them")
            if video is not None:
                self.found += 1
                return Located(video, candidate.cut)
            (stems if find == "stem" else paths).append(name)
            cuts.setdefault(name, candidate.cut)
        if not stems and not paths:
            named = " and ".join(candidate.path.removesuffix("?") for candidate in self._candidates)
            return reject(where, "no-video", f"{named}: the row names no video")
        self.example = self.example or (paths + stems)[0]
        names = " or ".join(dict.fromkeys([*paths, *(f"{stem}.mp4" for stem in stems)]))
        suffix = " (or another suffix)" if stems else ""
        return reject(where, "missing-file", f"no {names}{suffix} in the folder; download it, or leave it out")

    def _look(self, name: str, find: str) -> str | list[str] | None:
        """The file, or several of one name, or None."""
        if find == "stem":
            return self._files.of_stem(name)
        if find == "name":
            return self._files.of_name(PurePosixPath(name).name)
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
            # Whoever uses the row refuses it.
            return name
        if name in self._files or (self._folder / name).exists():
            return name
        return None


def _normal(name: str) -> str:
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name
