"""Where the videos of a published dataset lie in a folder: its annotations name them by an id, downloads put them anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from stages.domain.core.records import Reject
from stages.lib.annotations.annotation import reject, videos_in


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
