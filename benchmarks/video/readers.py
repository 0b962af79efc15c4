"""Reading frames with our reader and with others, the probe, and memory of readers."""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from benchmarks.video.files import SAMPLED, File
from benchmarks.video.timing import medians
from stages.domain.core.timeline import sample_indices
from stages.lib.video.probe import Probe, probe
from stages.lib.video.reader import read_frames

Pixels = npt.NDArray[np.uint8]


def with_ours(facts: Probe, path: Path, indices: Sequence[int]) -> Pixels:
    return read_frames(path, indices, facts=facts)[0]


def with_decord(path: Path, indices: Sequence[int]) -> Pixels:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    frames: Pixels = decord.VideoReader(str(path), num_threads=1).get_batch(list(indices)).asnumpy()
    return frames


def with_pyav(path: Path, indices: Sequence[int]) -> Pixels:
    """Read frames as PyAV's own documentation seeks: to the key frame before each wanted time, then
    decode up to it.
    """
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        rate, base = Fraction(stream.average_rate or 0), Fraction(stream.time_base or 0)
        for index in indices:
            time_ = round(index / rate / base)
            container.seek(time_, stream=stream)
            found = next((f for f in container.decode(stream) if f.pts is not None and f.pts >= time_), None)
            if found is None:
                raise ValueError(f"{path}: no frame {index}")
            frames.append(found.to_ndarray(format="rgb24"))
    return np.stack(frames)


def with_torchcodec(path: Path, indices: Sequence[int]) -> Pixels:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), num_ffmpeg_threads=1, dimension_order="NHWC")
    frames: Pixels = decoder.get_frames_at(list(indices)).data.numpy()
    return frames


def decode_only(path: Path) -> None:
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for _ in container.decode(video=0):
            pass


def truth(path: Path, indices: Sequence[int]) -> Pixels:
    """Wanted frames from a decode of the whole file."""
    frames = {}
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in indices:
                frames[number] = frame.to_ndarray(format="rgb24")
    return np.stack([frames[index] for index in indices])


def right(read: Callable[[Path, Sequence[int]], Pixels], path: Path, indices: Sequence[int], true: Pixels) -> bool:
    try:
        frames = read(path, indices)
    except Exception:  # whatever a foreign reader raises, it did not return the frames
        return False
    # Readers round colours differently by a step or two; another frame of a moving picture differs
    # by far more.
    return frames.shape == true.shape and all(
        np.abs(a.astype(np.int16) - b).mean() < 2.5 for a, b in zip(frames, true, strict=True)
    )


def reading(files: Sequence[File], rounds: int) -> list[str]:
    lines = [
        "| file | plain decode, CPU s | "
        + " | ".join(("ours", "decord", "PyAV", "torchcodec"))
        + " | ours / fastest that is right |",
        "|---|---|---|---|---|---|---|",
    ]
    for file in files:
        indices = sample_indices(file.facts.frames, SAMPLED)
        readers: dict[str, Callable[[Path, Sequence[int]], Pixels]] = {
            "ours": partial(with_ours, file.facts),
            "decord": with_decord,
            "pyav": with_pyav,
        }
        if find_spec("torchcodec"):
            readers["torchcodec"] = with_torchcodec
        true = truth(file.path, indices)
        correct = {name: right(read, file.path, indices, true) for name, read in readers.items()}
        if not correct["ours"]:
            raise RuntimeError(f"{file.name}: our own reader returned a wrong frame")
        works: dict[str, Callable[[], object]] = {
            name: partial(read, file.path, indices) for name, read in readers.items() if correct[name]
        }
        taken = medians({"plain": partial(decode_only, file.path), **works}, rounds)
        others = [seconds for name, seconds in taken.items() if name not in ("plain", "ours")]
        cells = [
            "not installed"
            if name not in readers
            else f"{taken[name] / taken['plain']:.2f}"
            if correct[name]
            else "wrong frames"
            for name in ("ours", "decord", "pyav", "torchcodec")
        ]
        ratio = f"**{taken['ours'] / min(others):.2f}**" if others else "no other is right"
        lines.append(f"| {file.name} | {taken['plain']:.2f} | {' | '.join(cells)} | {ratio} |")
    return lines


def gate(files: Sequence[File], rounds: int) -> list[str]:
    lines = ["| file | gate, CPU ms | share of a plain decode |", "|---|---|---|"]
    for file in files:
        taken = medians({"gate": partial(probe, file.path), "plain": partial(decode_only, file.path)}, rounds)
        lines.append(f"| {file.name} | {1000 * taken['gate']:.1f} | {taken['gate'] / taken['plain']:.3f} |")
    return lines


def flat_reading(file: File, times: int) -> str:
    """Resident memory after reading the same file many times: readers are dropped, so it must not
    grow.
    """

    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

    indices = sample_indices(file.facts.frames, SAMPLED)
    for _ in range(50):
        read_frames(file.path, indices, facts=file.facts)
    before = resident_mb()
    for _ in range(times):
        read_frames(file.path, indices, facts=file.facts)
    return f"Resident memory after 50 reads of one clip {before:.0f} MB, after {times:,} more {resident_mb():.0f} MB."
