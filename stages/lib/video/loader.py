"""Loading of samples' frames, with edits applied at load time: only the edit list is stored, never
an edited file.

A masked or interleaved sample costs as much as plain sampling: each clip is read once, and dark
frames not at all.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache, lru_cache
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from stages.domain.core.frames import Fit, Frames
from stages.domain.core.records import Clip, Sample, Timeline
from stages.domain.core.timeline import SampledFrames, Source, conformed_frame, frame_count, resolve, sample_indices
from stages.lib.video import container, encoder, errors, folders, packets, pictures, reader, rotation, times
from stages.lib.video import probe as probing
from stages.lib.video.errors import VideoError
from stages.lib.video.pictures import warnings_about
from stages.lib.video.probe import UNTRUSTED_TIMES, Probe, packet_index, probe
from stages.lib.video.reader import Facts, ReadStats, read_frames
from stages.lib.video.times import PacketIndex
from stages.runtime.code_digest import code_digest
from stages.runtime.frame_cache import FrameStore
from stages.runtime.sources.videos import Videos

Pixels = npt.NDArray[np.uint8]

#: A clip that decodes to at most this many bytes is cached whole, so every sample of it is served
#: from memory.
WHOLE_CLIP_BYTES = 2_000_000

#: Files of which the packets are remembered: an hour of video takes 5 MB.
REMEMBERED_FILES = 32

_LIBRARIES = ("av", "decord", "numpy", "pillow")
#: The modules beside this one that turn a file into pixels.
READING = (container, encoder, errors, folders, packets, pictures, probing, reader, rotation, times)


@dataclass(frozen=True)
class FileFacts:
    """The facts about a clip's whole file that affect how it is read."""

    frames: int
    width: int
    height: int
    hazards: tuple[str, ...]
    variable_rate: bool

    @property
    def decord_safe(self) -> bool:
        return not self.hazards


def file_facts(clip: Clip) -> FileFacts:
    """Facts about the file of a clip; for a part those of the whole file."""
    return FileFacts(clip.file_frames, clip.width, clip.height, clip.hazards, clip.variable_rate)


class FrameLoader:
    """Loads samples' frames, with a least-recently-used cache of at most ``cache_bytes`` in memory.

    Args:
        clips: the manifest by clip id.
        source: the folder that the clips' paths are relative to, or what finds their files.
        cache_bytes: bound on the cached pixels; 0 caches none.
        manifest: the manifest's folder, which holds the clips that ingest has re-encoded.
        store: cache of frames on disk; None: no cache on disk.
        fit: returns the resize that is applied before frames are stored there; called once the
            first frames are.
    """

    def __init__(
        self,
        clips: Mapping[str, Clip],
        source: Path | Videos,
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
        self._manifest = manifest or (source if isinstance(source, Path) else Path())
        self._cache_bytes = cache_bytes
        self._cached: OrderedDict[tuple[str, str], Pixels] = OrderedDict()
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of pixels in memory now."""
        return self._held_bytes

    def load(self, sample: Sample) -> Frames:
        """Load the sampled frames of a sample's timeline, dark ones black, all in the first
        segment's size or its size after ``fit``.

        Raises:
            KeyError: the timeline names a clip that the manifest lacks.
            VideoError: a clip cannot be read.
        """
        timeline = sample.timeline
        indices = sample_indices(timeline.frames, sample.sampled_frames)
        for name in timeline.clip_ids:
            self._clip(sample, name)
        key = ("sample", sample.sample_id)
        pixels = self._recall(key)
        if pixels is None:
            pixels, on_disk = self._fetch(timeline, indices)
            # The operating system caches files read from the disk, once for all processes.
            if not on_disk and any(not self._is_small(name) for name in timeline.clip_ids):
                self._keep(key, pixels)
        return Frames(pixels=pixels, indices=indices, total=timeline.frames, rate=timeline.rate)

    def outline(self, sample: Sample) -> Frames:
        """Return black frames of the number, size and times of :meth:`load`'s before ``fit``,
        without reading a file or taking memory.

        Raises:
            KeyError: the timeline names a clip that the manifest lacks.
        """
        timeline = sample.timeline
        indices = sample_indices(timeline.frames, sample.sampled_frames)
        first = self._clip(sample, timeline.segments[0].clip_id)
        pixels = np.broadcast_to(np.uint8(0), (len(indices), first.height, first.width, 3))
        return Frames(pixels=pixels, indices=indices, total=timeline.frames, rate=timeline.rate)

    def counts(self) -> dict[str, float]:
        """Return counts of decoded frames and of hits of the cache on disk, for a stage's
        metrics."""
        counts = {"frames_served_by_decord": self.stats.decord, "frames_served_by_pyav": self.stats.pyav}
        if self._store is not None:
            counts |= {"frame_store_hits": self._store.stats.hits, "frame_store_misses": self._store.stats.misses}
        return {name: float(count) for name, count in counts.items()}

    def frames(self, timeline: Timeline, indices: Sequence[int]) -> Pixels:
        """Load any frames of a timeline, dark ones black, uint8 RGB [len(indices), height, width,
        3], in the first segment's size.

        Small clips are cached in memory, these frames are not: an export reads all of them once.

        Raises:
            IndexError: a number outside the timeline.
            KeyError: the timeline names a clip that the manifest lacks.
            VideoError: a clip cannot be read.
        """
        sources = resolve(timeline, indices)
        first = self._clips[timeline.segments[0].clip_id]
        pixels = np.zeros((len(sources), first.height, first.width, 3), np.uint8)
        for clip_id in dict.fromkeys(source.clip_id for source in sources):
            rows = [row for row, source in enumerate(sources) if source.clip_id == clip_id and not source.dark]
            if not rows:
                continue
            read = self._read(clip_id, [self._stored(sources[row], timeline) for row in rows])
            pixels[rows] = conform(read, first.width, first.height)
        return pixels

    def path(self, clip: Clip) -> Path:
        """Path of the file from which this clip is read, fetched where it is not here.

        Raises:
            SourceAccessError: it cannot be fetched, or is not the one that ingest saw.
        """
        if clip.normalised:
            return self._manifest / clip.path
        if isinstance(self._source, Path):
            return self._source / clip.path
        return self._source.path(clip.path, clip.sha256)

    def _clip(self, sample: Sample, clip_id: str) -> Clip:
        if clip_id not in self._clips:
            raise KeyError(
                f"sample {sample.sample_id!r}: clip {clip_id!r} is not in the manifest; run synthesize again after"
                " ingest"
            )
        return self._clips[clip_id]

    def _fetch(self, timeline: Timeline, indices: Sequence[int]) -> tuple[Pixels, bool]:
        """Load frames, and tell if they are on disk. Small clips are kept there whole (`_whole`),
        unless they are parts of a large file."""
        if (
            self._store is None
            or self._fit is None
            or all(_file_bytes(self._clips[c]) <= WHOLE_CLIP_BYTES for c in timeline.clip_ids)
        ):
            return self.frames(timeline, indices), False
        fit = self._fit()
        return self._store.fetch(self._key(timeline, indices, fit), lambda: fit.apply(self.frames(timeline, indices)))

    def _key(self, timeline: Timeline, indices: Sequence[int], fit: Fit) -> str:
        """Hash of everything that the frames depend on. Timelines with the same frames share an
        entry."""
        clips = timeline.clip_ids
        facts = [self._identity(c) for c in clips]
        frames = [
            None
            if source.dark
            else (
                clips.index(source.clip_id),
                self._clips[source.clip_id].first_frame + self._stored(source, timeline),
            )
            for source in resolve(timeline, indices)
        ]
        return hashlib.sha256(json.dumps([_code_version(), fit.name, facts, frames]).encode()).hexdigest()

    def _identity(self, clip_id: str) -> list[object]:
        """Everything about a clip's file that its frames depend on."""
        return [self._content(clip_id), *astuple(file_facts(self._clips[clip_id]))]

    def _content(self, clip_id: str) -> str:
        """SHA-256 of the file that is read; the manifest has it for files of the source only."""
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
        """Number of a timeline's frame in the clip itself."""
        clip = self._clips[source.clip_id]
        return conformed_frame(source.frame, clip.frames, clip.rate, timeline.rate)

    def _read(self, clip_id: str, numbers: list[int]) -> Pixels:
        clip = self._clips[clip_id]
        if not self._is_small(clip_id):
            return self._decode(clip, numbers)
        key = ("clip", clip_id)
        whole = self._recall(key)
        if whole is None:
            whole = self._whole(clip)
            self._keep(key, whole)
        selected: Pixels = whole[numbers]
        return selected

    def _whole(self, clip: Clip) -> Pixels:
        """All frames of a small clip, from the disk if another stage has decoded it: for 16 frames
        of 64 px that takes a tenth of the time. Of a part of a large file, frames are kept by
        sample (`_fetch`)."""
        numbers = list(range(clip.frames))
        if self._store is None or _file_bytes(clip) > WHOLE_CLIP_BYTES:
            return self._decode(clip, numbers)
        parts = ["clip", _code_version(), self._identity(clip.clip_id), clip.first_frame, clip.frames]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return self._store.fetch(key, lambda: self._decode(clip, numbers))[0]

    def _decode(self, clip: Clip, numbers: list[int]) -> Pixels:
        """Read frames of a clip, by their numbers in the clip."""
        path, of_file = self.path(clip), [clip.first_frame + number for number in numbers]
        facts: Facts = file_facts(clip)
        if clip.variable_rate:
            # Ingest decoded the whole file and may have found faults of its times that the packets
            # do not reveal.
            probed = (_remembered_probe if clip.excerpt else _probe)(path, UNTRUSTED_TIMES in clip.hazards)
            if not probed.variable_rate or probed.slots != clip.file_frames:
                raise VideoError("changed", f"{clip.path}: no longer the file that ingest saw; run ingest again")
            facts, of_file = probed, [probed.frame_at(number) for number in of_file]
        packets = _remembered_packets if clip.excerpt else packet_index
        return read_frames(path, of_file, facts=facts, stats=self.stats, packets=packets)[0]

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


def _file_bytes(clip: Clip) -> int:
    return clip.file_frames * clip.height * clip.width * 3


# Of a recording of 20 minutes the packets take twice as long as the frames of one sample, so those
# of recordings in parts are remembered, as long as the file stays as it is.


def _probe(path: Path, distrust: bool) -> Probe:
    return probe(path, distrust=distrust)


def _remembered_probe(path: Path, distrust: bool) -> Probe:
    return _probe_of(path, distrust, *_state(path))


@lru_cache(maxsize=REMEMBERED_FILES)
def _probe_of(path: Path, distrust: bool, _size: int, _mtime_ns: int) -> Probe:
    return probe(path, distrust=distrust)


def _remembered_packets(path: Path) -> PacketIndex:
    return _packets_of(path, *_state(path))


@lru_cache(maxsize=REMEMBERED_FILES)
def _packets_of(path: Path, _size: int, _mtime_ns: int) -> PacketIndex:
    return packet_index(path)


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise VideoError("missing-file", f"{path.name}: no such file; run ingest again") from error
    return status.st_size, status.st_mtime_ns


@cache
def _code_version() -> str:
    """Digest of the code and the libraries that turn a clip into pixels; frames on disk from other
    versions are not used."""
    installed = [f"{dist.name} {dist.version}" for name in _LIBRARIES for dist in distributions(name=name)]
    code = code_digest([Path(__file__), *(Path(module.__file__ or "") for module in READING)])
    return hashlib.sha256(json.dumps([code, platform.machine(), *installed]).encode()).hexdigest()


def conform(pixels: Pixels, width: int, height: int) -> Pixels:
    """Scale frames [N, h, w, 3] into width x height; the aspect ratio stays, and the margins are
    black."""
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


def load_video(path: Path, sampled: SampledFrames) -> Frames:
    """Load frames spread evenly over any video file, as many as ``sampled`` gives it, for a
    prediction.

    Raises:
        VideoError: the file cannot be read.
    """
    facts = probe(path)
    indices = sample_indices(facts.slots, frame_count(sampled, facts.slots, facts.rate))
    pixels, _ = read_frames(path, [facts.frame_at(index) for index in indices], facts=facts)
    return Frames(pixels, indices, facts.slots, facts.rate, warnings_about(path))
