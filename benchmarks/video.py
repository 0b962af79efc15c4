"""Cost of reading, editing and synthesis, as ratios within one run: ``make bench-video``.

The videos are the clip under ``tests/data/clips``, repeated and encoded again, since synthetic
pictures decode faster than real ones. Every reader is asked for the same 16 frames, in turn,
several times; the median of its CPU seconds counts, its threads' included. A reader that returns
another frame than the file's decode holds at that place is wrong on the file, and no yardstick.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import numpy.typing as npt

from benchmarks.machine import keep
from stages.domain.core.frames import Frames
from stages.domain.core.records import Clip, Event, Question, Sample, Segment, Span, Subject, Timeline
from stages.domain.core.timeline import interleave, mask, plain, sample_indices
from stages.lib.rows.jsonl import write_rows
from stages.lib.video.encoder import ffmpeg_binary
from stages.lib.video.loader import FrameLoader
from stages.lib.video.probe import Probe, probe
from stages.lib.video.reader import read_frames
from stages.params import load_params
from stages.runtime.frame_cache import FrameStore
from stages.runtime.machine import measured

Pixels = npt.NDArray[np.uint8]
REAL = Path("tests/data/clips/bigbuckbunny.mp4")
SAMPLED = 16


class File(NamedTuple):
    name: str
    path: Path
    facts: Probe


def encode(folder: Path, name: str, seconds: int, *output: str) -> File:
    """Encode the real clip, repeated for so many seconds, with these arguments."""
    path = folder / name
    command = [
        ffmpeg_binary(),
        "-nostdin",
        "-v",
        "error",
        "-y",
        "-stream_loop",
        "-1",
        "-i",
        str(REAL),
        "-t",
        str(seconds),
    ]
    subprocess.run([*command, "-an", "-preset", "faster", "-pix_fmt", "yuv420p", *output, str(path)], check=True)
    return File(name, path, probe(path))


def cpu(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def medians(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each, run in turn, so that a drift of the machine affects all alike."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(cpu(work))
    return {name: statistics.median(times) for name, times in taken.items()}


# ---- readers
# ------------------------------------------------------------------------------


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
            "ours": lambda path, wanted, facts=file.facts: read_frames(path, wanted, facts=facts)[0],
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


# ---- gate and edits
# ------------------------------------------------------------------------------


def gate(files: Sequence[File], rounds: int) -> list[str]:
    lines = ["| file | gate, CPU ms | share of a plain decode |", "|---|---|---|"]
    for file in files:
        taken = medians({"gate": partial(probe, file.path), "plain": partial(decode_only, file.path)}, rounds)
        lines.append(f"| {file.name} | {1000 * taken['gate']:.1f} | {taken['gate'] / taken['plain']:.3f} |")
    return lines


def as_clip(file: File) -> Clip:
    facts = file.facts
    return Clip(
        clip_id=file.name,
        source_id=file.name,
        path=file.path.name,
        sha256=hashlib.sha256(file.path.read_bytes()).hexdigest(),
        split="train",
        frames=facts.frames,
        rate=facts.rate,
        width=facts.width,
        height=facts.height,
        codec=facts.codec,
        hazards=facts.hazards,
    )


def as_sample(timeline: Timeline) -> Sample:
    return Sample(
        sample_id="s",
        task="caption",
        split="train",
        clip_id=timeline.clip_ids[0],
        timeline=timeline,
        sampled_frames=SAMPLED,
        question="?",
        reference="!",
    )


def edits(first: File, second: File, rounds: int) -> list[str]:
    """Compare loading edited samples with sampling as many frames of the same files without an
    edit.
    """
    clips = {file.name: as_clip(file) for file in (first, second)}
    a, b = clips.values()
    masked = mask(plain(a.clip_id, a.frames, a.rate), Span(start=a.frames // 3, stop=a.frames // 2))

    def pieces(clip: Clip) -> list[Segment]:
        edges = [round(clip.frames * n / 6) for n in range(7)]
        return [Segment(clip_id=clip.clip_id, span=Span(start=x, stop=y)) for x, y in pairwise(edges)]

    mixed = interleave(pieces(a), pieces(b), a.rate)

    def load(timeline: Timeline) -> Callable[[], object]:
        # A fresh loader: nothing may come from memory.
        return lambda: FrameLoader(clips, first.path.parent, cache_bytes=0).load(as_sample(timeline))

    def both() -> None:
        for file in (first, second):
            read_frames(file.path, sample_indices(file.facts.frames, SAMPLED // 2), facts=file.facts)

    taken = medians(
        {
            "one": lambda: read_frames(first.path, sample_indices(first.facts.frames, SAMPLED), facts=first.facts),
            "masked": load(masked),
            "two": both,
            "mixed": load(mixed),
        },
        rounds,
    )
    return [
        "| sample | CPU s | against plain sampling of the same sources |",
        "|---|---|---|",
        f"| masked | {taken['masked']:.3f} | **{taken['masked'] / taken['one']:.2f}** |",
        f"| interleaved | {taken['mixed']:.3f} | **{taken['mixed'] / taken['two']:.2f}** |",
    ]


def kept(folder: Path, files: Sequence[File], rounds: int) -> list[str]:
    """Compare loading frames from disk with decoding them, alone and up to the model's input, as
    the 7B recipe sizes frames.
    """
    import torch
    from transformers import Qwen2VLVideoProcessor

    from stages.lib.models.resizing import fit_of

    torch.set_num_threads(1)
    most = 196 * 28 * 28
    processor = Qwen2VLVideoProcessor(
        size={"shortest_edge": 128 * 28 * 28, "longest_edge": most}, cap_pixels_per_frame=False
    )
    processor.save_pretrained(folder / "processor")
    lines = [
        "| file | decode, CPU s | decode and keep | from disk | from disk / decode"
        " | with the processor: decode | from disk | ratio | kept, MB (whole frames) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for file in files:
        clips, sample = {file.name: as_clip(file)}, as_sample(plain(file.name, file.facts.frames, file.facts.rate))

        def loader(place: Path | None, clips: dict[str, Clip] = clips) -> FrameLoader:
            store = None if place is None else FrameStore(place, 10**10)
            return FrameLoader(clips, files[0].path.parent, 0, store=store, fit=lambda: fit_of(folder / "processor"))

        def process(frames: Frames) -> torch.Tensor:
            pixels = torch.from_numpy(frames.pixels.copy()).permute(0, 3, 1, 2)
            made = processor([pixels], do_sample_frames=False, input_data_format="channels_first", return_tensors="pt")
            values: torch.Tensor = made["pixel_values_videos"]
            return values

        disk = loader(folder / "kept")
        whole, small = loader(None).load(sample), disk.load(sample)
        if not torch.equal(process(whole), process(disk.load(sample))):
            raise RuntimeError(f"{file.name}: the processor makes something else of the kept frames")
        taken = medians(
            {
                "decode": partial(loader(None).load, sample),
                "keep": lambda sample=sample, loader=loader: loader(Path(tempfile.mkdtemp(dir=folder))).load(sample),
                "disk": partial(disk.load, sample),
                "decode+": lambda sample=sample, loader=loader: process(loader(None).load(sample)),
                "disk+": lambda sample=sample, disk=disk: process(disk.load(sample)),
            },
            rounds,
        )
        cells = [f"{taken[name]:.3f}" for name in ("decode", "keep", "disk")] + [
            f"**{taken['disk'] / taken['decode']:.3f}**"
        ]
        cells += [f"{taken[name]:.3f}" for name in ("decode+", "disk+")] + [
            f"**{taken['disk+'] / taken['decode+']:.3f}**"
        ]
        cells.append(f"{small.pixels.nbytes / 1e6:.1f} ({whole.pixels.nbytes / 1e6:.1f})")
        lines.append(f"| {file.name} | {' | '.join(cells)} |")
    return lines


# ---- synthesis
# ------------------------------------------------------------------------------


def write_manifest(path: Path, count: int) -> None:
    """Write rows as ingest does, of ``count`` clips of a minute with six events each; no video
    belongs to them.
    """

    def clip(number: int) -> Clip:
        events = tuple(
            Event(span=Span(start=n * 300, stop=n * 300 + 200), caption=f"someone does thing {number * 7 % 997} of {n}")
            for n in range(6)
        )
        return Clip(
            clip_id=f"clip-{number:08d}",
            source_id=f"source-{number // 3:08d}",
            path=f"videos/{number:08d}.mp4",
            sha256=f"{number:064x}",
            split="test" if number % 10 == 0 else "train",
            frames=1800,
            rate=Fraction(30),
            width=1280,
            height=720,
            codec="h264",
            label=f"class {number % 400}",
            caption="Someone does one thing after the other in a kitchen, and then cleans the table.",
            events=events,
            subjects=(Subject(name="person", attributes=(f"look {number % 50}",), actions=("cooks",)),),
            questions=(Question(question="What is made?", options=("Tea", "Soup", "Bread"), answer="B"),),
        )

    write_rows(path, (clip(number) for number in range(count)))


SYNTHESIS = """
import json, resource, sys, time
from pathlib import Path
from stages.params import SynthesizeParams
from stages.synthesize.shards import synthesise_manifest
folder = Path(sys.argv[1])
settings = SynthesizeParams.model_validate_json((folder / "settings.json").read_text())
(folder / "scratch").mkdir(exist_ok=True)
if __name__ == "__main__":
    started = time.perf_counter()
    made = synthesise_manifest(folder / "manifest.jsonl", settings, 7, folder / "scratch", folder / "samples")
    seconds = time.perf_counter() - started
    # Not ru_maxrss: it starts with what the process held that this one was forked from.
    status = Path("/proc/self/status").read_text().splitlines()
    own = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    peaks = [own / 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]
    samples = sum(sum(counts.values()) for counts in made.samples.values())
    print(json.dumps({"samples": samples, "seconds": seconds, "peaks": peaks}))
"""


def synthesis(counts: Sequence[int], workers: int) -> list[str]:
    lines = [
        f"| clips | samples | samples a second and core ({workers} worker) | peak MB, parent | peak MB, worker |",
        "|---|---|---|---|---|",
    ]
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_manifest(folder / "manifest.jsonl", count)
            (folder / "settings.json").write_text(
                load_params("infra/recipes/vidbridge-r1.yaml").synthesize.model_dump_json()
            )
            script = folder / "run.py"
            script.write_text(SYNTHESIS)
            environment = {**os.environ, "VIDBRIDGE_WORKERS": str(workers), "PYTHONPATH": str(Path.cwd())}
            done = subprocess.run(
                [sys.executable, str(script), name], env=environment, capture_output=True, text=True, check=True
            )
            found = json.loads(done.stdout.strip().splitlines()[-1])
            each = found["samples"] / found["seconds"] / workers
            lines.append(
                f"| {count:,} | {found['samples']:,} | {each:,.0f} | {found['peaks'][0]:.0f} | {found['peaks'][1]:.0f}"
                " |"
            )
    return lines


# ---- two workers
# ------------------------------------------------------------------------------

INGEST = """
import sys
from pathlib import Path
from stages.ingest.examine import examine_source
from stages.params import IngestParams
if __name__ == "__main__":
    settings = IngestParams.model_validate_json(Path(sys.argv[1]).read_text())
    clips, rejects, _ = examine_source(settings, 7)
    assert not rejects, rejects[:3]
    print(len(clips))
"""


def two_workers(folder: Path, file: File, copies: int) -> list[str]:
    """Examine so many different files with one worker and with two."""
    source = folder / "many"
    source.mkdir()
    content = file.path.read_bytes()
    for number in range(copies):
        # A trailing box that readers skip: other bytes, the same video.
        (source / f"{number:03d}.mp4").write_bytes(
            content + (12).to_bytes(4, "big") + b"free" + number.to_bytes(4, "big")
        )
    (source / "annotations.jsonl").write_text(
        "".join(json.dumps({"video": f"{n:03d}.mp4"}) + "\n" for n in range(copies))
    )
    ingest = load_params().ingest.model_copy(update={"source": str(source)})
    (folder / "ingest.json").write_text(ingest.model_dump_json())
    (folder / "ingest.py").write_text(INGEST)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(3):
        for workers, taken in seconds.items():
            environment = {**os.environ, "VIDBRIDGE_WORKERS": str(workers), "PYTHONPATH": str(Path.cwd())}
            started = time.perf_counter()
            command = [sys.executable, str(folder / "ingest.py"), str(folder / "ingest.json")]
            subprocess.run(command, env=environment, capture_output=True, check=True)
            taken.append(time.perf_counter() - started)
    one, two = (statistics.median(taken) for taken in seconds.values())
    return [
        "| workers | seconds | clips a second | speed-up |",
        "|---|---|---|---|",
        f"| 1 | {one:.1f} | {copies / one:.1f} | 1.00 |",
        f"| 2 | {two:.1f} | {copies / two:.1f} | **{one / two:.2f}** |",
    ]


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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.video", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="times each reader is asked (default: %(default)s)")
    parser.add_argument(
        "--clips", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="sizes of the synthesised manifests"
    )
    parser.add_argument("--reads", type=int, default=10_000, help="reads of the memory check (default: %(default)s)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=["reading", "gate", "edits", "kept", "workers", "memory", "synthesis"],
        help="these sections only",
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/video.md"))
    arguments = parser.parse_args()
    packages = ["av", "decord", "numpy", "pydantic"] + (["torchcodec"] if find_spec("torchcodec") else [])
    out = [measured(*packages)]

    def section(title: str, lines: Sequence[str]) -> None:
        print("\n".join((f"## {title}", "", *lines, "")), flush=True)
        out.extend(("", f"## {title}", "", *lines))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        short = ("-c:v", "libx264", "-g", "12")
        long = ("-c:v", "libx264", "-g", "250")
        files = [
            encode(folder, "10 s, GOP 12.mp4", 10, *short),
            encode(folder, "10 s, GOP 250.mp4", 10, *long),
            encode(folder, "60 s, GOP 12.mp4", 60, *short),
            encode(folder, "60 s, GOP 250.mp4", 60, *long),
        ]
        opened = ("-c:v", "libx264", "-x264-params", "open-gop=1:keyint=24:min-keyint=24:bframes=3")
        odd = [
            encode(folder, "10 s, open GOP.mp4", 10, *opened),
            encode(folder, "10 s, HEVC.mp4", 10, "-c:v", "libx265", "-g", "24", "-x265-params", "log-level=none"),
            encode(folder, "10 s, MPEG-TS.ts", 10, *short),
        ]
        small = encode(folder, "small.mp4", 5, "-c:v", "libx264", "-vf", "scale=256:144")
        sections: dict[str, tuple[str, Callable[[], list[str]]]] = {
            "reading": (
                "Reading 16 frames, CPU relative to a plain decode of the file",
                lambda: reading([*files, *odd], arguments.rounds),
            ),
            "gate": ("The gate", lambda: gate([*files, *odd], arguments.rounds)),
            "edits": ("Edit lists", lambda: edits(files[0], files[1], arguments.rounds)),
            "kept": ("Frames kept on disk (read from the page cache)", lambda: kept(folder, files, arguments.rounds)),
            "workers": ("Two workers (ingest: probe, decode, hash)", lambda: two_workers(folder, files[0], 24)),
            "memory": ("Memory of readers", lambda: [flat_reading(small, arguments.reads)]),
            "synthesis": ("Synthesis of edit lists", lambda: synthesis(arguments.clips, 1)),
        }
        for key, (title, measure) in sections.items():
            if key in (arguments.only or sections):
                section(title, measure())
    keep(out, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
