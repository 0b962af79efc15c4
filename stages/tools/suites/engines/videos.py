"""Which file, or which edited sample, a question is about, and its frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from stages.domain.core.frames import Frames
from stages.domain.core.records import Sample
from stages.lib.video.errors import VideoError
from stages.tools.suites.engines.contents import Contents
from stages.tools.suites.engines.questions import EngineError
from stages.tools.suites.frames import load_at
from stages.tools.suites.published.benchmark import FrameProtocol, Item

#: What videos are called, where annotations name them without a suffix: beside them lie subtitles and pictures of the same name.
SUFFIXES = frozenset(
    [".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".gif", ".ts", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".ogv"]
)


def sight(item: Item[Any]) -> str:
    """A name for what is shown: questions with equal ones share its frames."""
    if isinstance(item.row, Sample):
        return item.item_id
    part = "" if item.part_s is None else f"#{item.part_s[0]}-{item.part_s[1]}"
    return f"{item.video}{part}"


def protocol(frames: FrameProtocol) -> str:
    """In words, for whoever reads what an evaluation rests on."""
    return f"{frames.frames} frames" if frames.fps is None else f"{float(frames.fps):g} a second, at most {frames.frames}"


class Sights:
    """Loads what the questions of a benchmark are about.

    ``decoded`` counts how often a sight was loaded.

    Args:
        folder: where the videos lie, at any depth; None where all items are this project's own samples.
        load_sample: loads an edited sample of this project.
        contents: digests of the videos.
        sample_content: a digest of the clips that a sample shows; None: they are not there.
    """

    def __init__(
        self,
        items: Iterable[Item[Any]],
        folder: Path | None,
        load_sample: Callable[[Sample], Frames],
        contents: Contents,
        sample_content: Callable[[Sample], str | None],
    ) -> None:
        self.decoded = 0
        self._items = {sight(item): item for item in items}
        self._videos = VideoFolder(folder) if folder is not None else None
        self._load_sample = load_sample
        self._contents, self._sample_content = contents, sample_content
        self._seen: dict[str, str | None] = {}

    def load(self, name: str) -> Frames:
        """Raises:
        VideoError: there is no such video, or it cannot be read.
        """
        item = self._items[name]
        # Before its frames: a file that is replaced meanwhile is found out by the next call.
        self._seen[name] = self.content(name)
        self.decoded += 1
        if isinstance(item.row, Sample):
            return self._load_sample(item.row)
        if self._videos is None:
            raise EngineError(
                f"--videos: not given, and the question {item.item_id!r} is about {item.video!r}; name the folder it lies in"
            )
        path = self._videos.find(item.video)
        try:
            return load_at(path, item.frames.fps, item.frames.frames, item.part_s)
        except VideoError:
            raise
        except Exception as error:
            # Whatever a reader stumbles over is this file's fault, and costs its questions only.
            raise VideoError("unexpected-error", f"{item.video}: {type(error).__name__}: {error}") from error

    def content(self, name: str) -> str | None:
        """A digest of what a sight is cut out of, as it was when it was loaded, where it was; None: it is not there, or cannot be read."""
        if name in self._seen:
            return self._seen[name]
        item = self._items[name]
        if isinstance(item.row, Sample):
            return self._sample_content(item.row)
        if self._videos is None:
            return None
        try:
            return self._contents.of(self._videos.find(item.video))
        except (VideoError, OSError):
            return None


class VideoFolder:
    """Finds videos below a folder by the names that annotations give them; it is looked through once, when the first is asked for.

    Raises:
        EngineError: there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise EngineError(f"--videos: {str(folder)!r} is no folder; name the one that holds the benchmark's videos")
        self._folder = folder
        self._known: Mapping[str, list[Path]] | None = None

    def find(self, name: str) -> Path:
        """The file: at that path below the folder, else the only one of that name, else the only video that is called so but for
        its suffix.

        Raises:
            VideoError: ``missing-file``, ``ambiguous-name``, or ``unsafe-name`` for one that leads out of the folder.
        """
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
            raise VideoError("unsafe-name", f"{name[:200]!r} leads out of the folder of videos")
        if (self._folder / path).is_file():
            return self._folder / path
        found = self._files().get(path.name) or self._files().get(f"{path.name}.*") or self._files().get(f"{path.stem}.*") or []
        if len(found) > 1:
            places = ", ".join(str(file.relative_to(self._folder)) for file in found[:3])
            raise VideoError("ambiguous-name", f"{name!r} may be {places}; lay the right one at {name} in the folder of videos")
        if not found:
            raise VideoError("missing-file", f"{name!r} is not in the folder of videos")
        return found[0]

    def _files(self) -> Mapping[str, list[Path]]:
        """Files by name, and videos by ``STEM.*``."""
        if self._known is None:
            known: dict[str, list[Path]] = {}
            for file in sorted(file for file in self._folder.rglob("*") if file.is_file()):
                known.setdefault(file.name, []).append(file)
                if file.suffix.lower() in SUFFIXES:
                    known.setdefault(f"{file.stem}.*", []).append(file)
            self._known = known
        return self._known
