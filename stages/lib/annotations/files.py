"""Files of published datasets: annotations that are one JSON document, and videos, which annotations name by an id and downloads put
anywhere in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from stages.domain.core.records import Reject
from stages.lib.annotations.annotation import SourceError, reject, videos_in


def entries(text: str, name: str, folder: Path, below: str | None = None) -> Iterator[tuple[str, str, Any]]:
    """``FILE:LINE``, key and value of each entry of a document with one for each video, in the file's order; ``below`` names the field
    that holds the entries.

    Raises:
        SourceError: no JSON, or no object where the entries should be.
    """
    file = folder / name
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        first = text.partition("\n")[0].strip()
        if first.startswith("{") and first.endswith("}"):
            raise SourceError(f"{file}: these are JSON lines, not a JSON document ({error}); see ingest.format") from error
        raise SourceError(f"{file}: not JSON: {error}; download it again") from error
    found = document.get(below) if below and isinstance(document, dict) else document
    if not isinstance(found, dict):
        raise SourceError(f"{file}: {below or 'the document'} is no object with an entry for each video; see ingest.format")
    # json tells no line once a document is whole; keys come in the file's order, so each is looked for behind the one before.
    at, line = 0, 1
    for key, value in found.items():
        here = text.find(json.dumps(key, ensure_ascii=False) + ":", at)
        if here >= 0:
            at, line = here, line + text.count("\n", at, here)
        yield f"{name}:{line}", key, value


class Places:
    """The video files of a folder by their name without suffix, whatever folder below it they lie in."""

    def __init__(self, folder: Path) -> None:
        self._found: dict[str, list[str]] = {}
        for video in sorted(videos_in(folder)):
            self._found.setdefault(PurePosixPath(video).stem, []).append(video)

    def find(self, stems: Iterable[str], where: str) -> str | Reject:
        """The one file that bears the first of these names that any bears; ``missing-file`` or ``ambiguous-file`` otherwise."""
        wanted = list(dict.fromkeys(stems))
        for stem in wanted:
            found = self._found.get(stem, [])
            if len(found) == 1:
                return found[0]
            if found:
                return reject(where, "ambiguous-file", f"{stem}: {', '.join(found)} bear this name; keep one of them")
        names = " or ".join(f"{stem}.mp4" for stem in wanted)
        return reject(where, "missing-file", f"no {names} (or another suffix) anywhere in the folder; download it, or leave it out")
