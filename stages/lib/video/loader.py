"""Edits applied to sampled frames at load time: the edit list is the truth, and no edited file has to exist.

Loading a masked or interleaved sample costs what plain sampling costs: each clip is read once, and dark frames not at all.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from stages.domain.core.frames import Fit, Frames
from stages.domain.core.records import Clip, Sample, Timeline
from stages.domain.core.timeline import Source, conformed_frame, resolve, sample_indices
from stages.lib.video import probe as probing
from stages.lib.video import reader, times
from stages.lib.video.errors import VideoError
from stages.lib.video.probe import UNTRUSTED_TIMES, probe
from stages.lib.video.reader import ReadStats, read_frames
from stages.runtime.code_digest import code_digest
from stages.runtime.frame_cache import FrameStore

Pixels = npt.NDArray[np.uint8]

#: A clip that decodes to at most this many bytes is kept whole: every sample of it is then served from memory.
WHOLE_CLIP_BYTES = 2_000_000

_LIBRARIES = ("av", "decord", "numpy", "pillow")
#: What of a clip's row decides how its file is read.
_FACTS = {"frames", "width", "height", "hazards", "variable_rate"}


class FrameLoader:
    """Loads samples' frames and keeps the latest used in memory, at most ``cache_bytes`` of them.

    Args:
        clips: the manifest by clip id.
        source: the folder that the clips' paths are relative to.
        cache_bytes: bound on the pixels kept; 0 keeps none.
        manifest: the manifest's folder, where clips lie that ingest has encoded anew.
        store: where frames are kept on disk; None: nowhere.
        fit: gives what makes frames smaller before they are kept there; asked for when the first are.
    """

    def __init__(
        self,
        clips: Mapping[str, Clip],
        source: Path,
        cache_bytes: int,
        manifest: Path | None = None,
        store: FrameStore | None = None,
        fit: Callable[[], Fit] | None = None,
    ) -> None:
        self.stats = ReadStats()
        self._store = store
        self._fit = fit
        self._contents: dict[str, str] = {}
        self._clips = clips
        self._source = source
        self._manifest = manifest or source
        self._cache_bytes = cache_bytes
        self._cached: OrderedDict[tuple[str, str], Pixels] = OrderedDict()
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of pixels in memory now."""
        return self._held_bytes

    def load(self, sample: Sample) -> Frames:
        """The sampled frames of a sample's timeline, dark ones black, all of the first segment's size or what ``fit`` makes of it.

        Raises:
            KeyError: the timeline names a clip that the manifest lacks.
            VideoError: a clip cannot be read.
        """
        timeline = sample.timeline
        indices = sample_indices(timeline.frames, sample.sampled_frames)
        unknown = [name for name in timeline.clip_ids if name not in self._clips]
        if unknown:
            raise KeyError(
                f"sample {sample.sample_id!r}: clip {unknown[0]!r} is not in the manifest; run synthesize again after ingest"
            )
        key = ("sample", sample.sample_id)
        pixels = self._recall(key)
        if pixels is None:
            pixels, on_disk = self._fetch(timeline, indices)
            # The system keeps what was read from the disk in memory, once for all processes.
            if not on_disk and any(not self._is_small(name) for name in timeline.clip_ids):
                self._keep(key, pixels)
        return Frames(pixels=pixels, indices=indices, total=timeline.frames, rate=timeline.rate)

    def counts(self) -> dict[str, float]:
        """How many frames were decoded, and how often the disk had a sample's, for a stage's metrics."""
        counts = {"frames_served_by_decord": self.stats.decord, "frames_served_by_pyav": self.stats.pyav}
        if self._store is not None:
            counts |= {"frame_store_hits": self._store.stats.hits, "frame_store_misses": self._store.stats.misses}
        return {name: float(count) for name, count in counts.items()}

    def frames(self, timeline: Timeline, indices: Sequence[int]) -> Pixels:
        """Any frames of a timeline, dark ones black, uint8 RGB [len(indices), height, width, 3], all of the first segment's size.

        Whole small clips are kept in memory, these frames are not: an export asks for all of them, once.

        Raises:
            IndexError: a number outside the timeline.
            KeyError: the timeline names a clip that the manifest lacks.
            VideoError: a clip cannot be read.
        """
        sources = resolve(timeline, indices)
        first = self._clips[timeline.segments[0].clip_id]
        shown = np.zeros((len(sources), first.height, first.width, 3), np.uint8)
        for clip_id in dict.fromkeys(source.clip_id for source in sources):
            places = [place for place, source in enumerate(sources) if source.clip_id == clip_id and not source.dark]
            if not places:
                continue
            read = self._read(clip_id, [self._stored(sources[place], timeline) for place in places])
            shown[places] = conform(read, first.width, first.height)
        return shown

    def path(self, clip: Clip) -> Path:
        """Where the file lies that this clip is read from."""
        return (self._manifest if clip.normalised else self._source) / clip.path

    def _fetch(self, timeline: Timeline, indices: Sequence[int]) -> tuple[Pixels, bool]:
        """The frames, and whether the disk has them. Small clips are decoded sooner than a file of their frames is opened."""
        if (
            self._store is None
            or self._fit is None
            or all(_decoded_bytes(self._clips[c]) <= WHOLE_CLIP_BYTES for c in timeline.clip_ids)
        ):
            return self.frames(timeline, indices), False
        fit = self._fit()
        return self._store.fetch(self._key(timeline, indices, fit), lambda: fit.apply(self.frames(timeline, indices)))

    def _key(self, timeline: Timeline, indices: Sequence[int], fit: Fit) -> str:
        """Hash of all that the frames depend on. Timelines that show the same frames share an entry."""
        clips = timeline.clip_ids
        facts = [[self._content(c), *self._clips[c].model_dump(mode="json", include=_FACTS).values()] for c in clips]
        shown = [
            None if source.dark else (clips.index(source.clip_id), self._stored(source, timeline))
            for source in resolve(timeline, indices)
        ]
        return hashlib.sha256(json.dumps([_code_version(), fit.name, facts, shown]).encode()).hexdigest()

    def _content(self, clip_id: str) -> str:
        """SHA-256 of the file that is read: ingest took that of the source's own."""
        clip = self._clips[clip_id]
        if not clip.normalised:
            return clip.sha256
        if clip_id not in self._contents:
            if not self.path(clip).is_file():
                raise VideoError("missing-file", f"{clip.path}: no such file; run ingest again")
            with self.path(clip).open("rb") as file:
                self._contents[clip_id] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._contents[clip_id]

    def _stored(self, source: Source, timeline: Timeline) -> int:
        """The number in its clip of the frame that is shown."""
        clip = self._clips[source.clip_id]
        return conformed_frame(source.frame, clip.frames, clip.rate, timeline.rate)

    def _read(self, clip_id: str, numbers: list[int]) -> Pixels:
        clip = self._clips[clip_id]
        if not self._is_small(clip_id):
            return self._decode(clip, numbers)
        key = ("clip", clip_id)
        whole = self._recall(key)
        if whole is None:
            whole = self._decode(clip, list(range(clip.frames)))
            self._keep(key, whole)
        picked: Pixels = whole[numbers]
        return picked

    def _decode(self, clip: Clip, numbers: list[int]) -> Pixels:
        path = self.path(clip)
        if not clip.variable_rate:
            return read_frames(path, numbers, known=clip, stats=self.stats)[0]
        # Ingest decoded all of it and may know more against its times than the packets tell.
        facts = probe(path, distrust=UNTRUSTED_TIMES in clip.hazards)
        if not facts.variable_rate or facts.slots != clip.frames:
            raise VideoError("changed", f"{clip.path}: no longer the file that ingest saw; run ingest again")
        return read_frames(path, [facts.frame_at(number) for number in numbers], known=facts, stats=self.stats)[0]

    def _is_small(self, clip_id: str) -> bool:
        return _decoded_bytes(self._clips[clip_id]) <= min(WHOLE_CLIP_BYTES, self._cache_bytes)

    def _recall(self, key: tuple[str, str]) -> Pixels | None:
        if key in self._cached:
            self._cached.move_to_end(key)
        return self._cached.get(key)

    def _keep(self, key: tuple[str, str], pixels: Pixels) -> None:
        if pixels.nbytes > self._cache_bytes:
            return
        pixels.setflags(write=False)
        self._cached[key] = pixels
        self._held_bytes += pixels.nbytes
        while self._held_bytes > self._cache_bytes:
            _, dropped = self._cached.popitem(last=False)
            self._held_bytes -= dropped.nbytes


def _decoded_bytes(clip: Clip) -> int:
    return clip.frames * clip.height * clip.width * 3


@cache
def _code_version() -> str:
    """Digest of the code and the libraries that turn a clip into pixels: frames on disk that others have made are not used."""
    installed = [f"{dist.name} {dist.version}" for name in _LIBRARIES for dist in distributions(name=name)]
    code = code_digest([Path(__file__), *(Path(module.__file__ or "") for module in (probing, reader, times))])
    return hashlib.sha256(json.dumps([code, platform.machine(), *installed]).encode()).hexdigest()


def conform(pixels: Pixels, width: int, height: int) -> Pixels:
    """Frames [N, h, w, 3] scaled into width x height; the aspect ratio stays, and what is left over is black."""
    _, old_height, old_width, _ = pixels.shape
    if (old_width, old_height) == (width, height):
        return pixels
    scale = min(width / old_width, height / old_height)
    inner_width, inner_height = max(1, round(old_width * scale)), max(1, round(old_height * scale))
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    fitted = np.zeros((len(pixels), height, width, 3), np.uint8)
    for number, frame in enumerate(pixels):
        scaled = Image.fromarray(frame).resize((inner_width, inner_height), Image.Resampling.BILINEAR)
        fitted[number, top : top + inner_height, left : left + inner_width] = np.asarray(scaled)
    return fitted


def load_video(path: Path, frames: int) -> Frames:
    """``frames`` frames spread evenly over any video file, for a prediction.

    Raises:
        VideoError: the file cannot be read.
    """
    facts = probe(path)
    indices = sample_indices(facts.slots, frames)
    pixels, _ = read_frames(path, [facts.frame_at(index) for index in indices], known=facts)
    return Frames(pixels=pixels, indices=indices, total=facts.slots, rate=facts.rate)
