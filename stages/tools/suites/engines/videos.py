"""Find the file, or the edited sample, that a question is about, and load its frames."""

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

#: Suffixes of videos that annotations name without one: subtitles and pictures of the same name may
#: lie beside them.
SUFFIXES = frozenset(
    [".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".gif", ".ts", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".ogv"]
)


def video_key_of(item: Item[Any]) -> str:
    """Key of a question's video: questions with equal keys share its frames."""
    if isinstance(item.row, Sample):
        return item.item_id
    part = "" if item.part_s is None else f"#{item.part_s[0]}-{item.part_s[1]}"
    return f"{item.video}{part}"


def protocol(frames: FrameProtocol) -> str:
    """Description of the frame protocol in words, as part of an evaluation's record."""
    return (
        f"{frames.frames} frames" if frames.fps is None else f"{float(frames.fps):g} a second, at most {frames.frames}"
    )


class VideoLoader:
    """Loads the videos of a benchmark's questions.

    ``decoded`` counts how often a video was loaded; ``warnings``: about videos that were, by name.

    Args:
        folder: root of the videos, at any depth; None if all items are this project's own samples.
        load_sample: loads an edited sample of this project.
        contents: digests of the videos.
        sample_content: a digest of a sample's clips; None: they are missing.
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
        self.warnings: dict[str, tuple[str, ...]] = {}
        self._items = {video_key_of(item): item for item in items}
        self._videos = VideoFolder(folder) if folder is not None else None
        self._load_sample = load_sample
        self._contents, self._sample_content = contents, sample_content
        self._seen: dict[str, str | None] = {}

    def load(self, name: str) -> Frames:
        """Load the frames of a video by its key.

        Raises:
            VideoError: there is no such video, or it cannot be read.
        """
        item = self._items[name]
        # Before its frames: the next call detects a file that is replaced meanwhile.
        self._seen[name] = self.content(name)
        self.decoded += 1
        if isinstance(item.row, Sample):
            return self._load_sample(item.row)
        if self._videos is None:
            raise EngineError(
                "--videos", f"not set, and the question {item.item_id!r} is about {item.video!r}", "name its folder"
            )
        path = self._videos.find(item.video)
        try:
            frames = load_at(path, item.frames.fps, item.frames.frames, item.part_s)
        except VideoError:
            raise
        except Exception as error:
            # Any failure of a reader is this file's fault, and costs its questions only.
            raise VideoError("unexpected-error", f"{item.video}: {type(error).__name__}: {error}") from error
        if frames.warnings:
            self.warnings[item.video] = frames.warnings
        return frames

    def content(self, name: str) -> str | None:
        """Digest of a video's source, as of when it was loaded, if it was; None: it is missing, or
        cannot be read."""
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
    """Finds videos below a folder by their names in annotations; the folder is scanned once, on
    first use.

    Raises:
        EngineError: there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise EngineError(
                "--videos", f"{str(folder)!r} is not a folder", "name the one that holds the benchmark's videos"
            )
        self._folder = folder
        self._known: Mapping[str, list[Path]] | None = None

    def find(self, name: str) -> Path:
        """Find the file: at that path below the folder, else the only one of that name, else the
        only video of that name with another suffix.

        Raises:
            VideoError: ``missing-file``, ``ambiguous-name``, or ``unsafe-name`` for one that leads
                out of the folder.
        """
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
            raise VideoError("unsafe-name", f"{name[:200]!r} leads out of the folder of videos")
        if (self._folder / path).is_file():
            return self._folder / path
        matches = (
            self._files().get(path.name)
            or self._files().get(f"{path.name}.*")
            or self._files().get(f"{path.stem}.*")
            or []
        )
        if len(matches) > 1:
            places = ", ".join(str(file.relative_to(self._folder)) for file in matches[:3])
            raise VideoError(
                "ambiguous-name", f"{name!r} may be {places}; lay the right one at {name} in the folder of videos"
            )
        if not matches:
            raise VideoError("missing-file", f"{name!r} is not in the folder of videos")
        return matches[0]

    def _files(self) -> Mapping[str, list[Path]]:
        """Map names to files, and ``STEM.*`` to videos."""
        if self._known is None:
            files: dict[str, list[Path]] = {}
            for file in sorted(file for file in self._folder.rglob("*") if file.is_file()):
                files.setdefault(file.name, []).append(file)
                if file.suffix.lower() in SUFFIXES:
                    files.setdefault(f"{file.stem}.*", []).append(file)
            self._known = files
        return self._known
