"""Files of published datasets: annotations in one JSON document, and videos named by an id,
anywhere in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from stages.domain.core.records import Reject
from stages.lib.annotations.annotation import SourceError, reject, videos_in


def entries(text: str, name: str, folder: Path, below: str | None = None) -> Iterator[tuple[str, str, Any]]:
    """Iterate over the entries of a document with one per video, in the file's order:
    ``FILE:LINE``, key and value.

    ``below``: the field that holds the entries; None: the document itself.

    Raises:
        SourceError: it is not JSON, or the entries are not in an object.
    """
    file = folder / name
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        first = text.partition("\n")[0].strip()
        if first.startswith("{") and first.endswith("}"):
            raise SourceError(
                str(file), f"these are JSON lines, not a JSON document ({error})", "see ingest.format"
            ) from error
        raise SourceError(str(file), f"not JSON: {error}", "download it again") from error
    table = document.get(below) if below and isinstance(document, dict) else document
    if not isinstance(table, dict):
        raise SourceError(
            str(file), f"{below or 'the document'} is not an object with an entry for each video", "see ingest.format"
        )
    # A parsed document has no line numbers; keys come in the file's order, so each is searched
    # behind the previous one.
    at, line = 0, 1
    for key, value in table.items():
        here = text.find(json.dumps(key, ensure_ascii=False) + ":", at)
        if here >= 0:
            at, line = here, line + text.count("\n", at, here)
        yield f"{name}:{line}", key, value


class VideoFiles:
    """The video files of a folder and its subfolders, by their name without suffix."""

    def __init__(self, folder: Path) -> None:
        self._all = videos_in(folder)
        self._by_stem: dict[str, list[str]] = {}
        self._by_name: dict[str, list[str]] = {}
        for video in sorted(self._all):
            path = PurePosixPath(video)
            self._by_stem.setdefault(path.stem, []).append(video)
            self._by_name.setdefault(path.name, []).append(video)

    def __contains__(self, video: str) -> bool:
        return video in self._all

    def __len__(self) -> int:
        return len(self._all)

    def first(self) -> str:
        """Path of some file, the same at each call, for an example in a message."""
        return min(self._all)

    def of_stem(self, stem: str) -> str | list[str] | None:
        """The only file with this name without suffix; all of them if there are several; None. A
        stem with folders stands for a path without suffix."""
        path = PurePosixPath(stem)
        videos = self._by_stem.get(path.name, [])
        if path.parent.name:
            videos = [video for video in videos if PurePosixPath(video).parent == path.parent]
        return videos[0] if len(videos) == 1 else videos or None

    def of_name(self, name: str) -> str | list[str] | None:
        """The only file with this name; all of them if there are several; None."""
        videos = self._by_name.get(name, [])
        return videos[0] if len(videos) == 1 else videos or None

    def find(self, stems: Iterable[str], where: str) -> str | Reject:
        """Find the only file with the first of these names that occurs; else a reject
        ``missing-file`` or ``ambiguous-file``."""
        distinct = list(dict.fromkeys(stems))
        for stem in distinct:
            videos = self._by_stem.get(stem, [])
            if len(videos) == 1:
                return videos[0]
            if videos:
                return reject(where, "ambiguous-file", f"{stem}: {', '.join(videos)} bear this name; keep one of them")
        names = " or ".join(f"{stem}.mp4" for stem in distinct)
        return reject(
            where,
            "missing-file",
            f"no {names} (or another suffix) anywhere in the folder; download it, or leave it out",
        )
