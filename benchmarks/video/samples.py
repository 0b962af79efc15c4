"""Loading the frames of samples: edited ones, and ones whose frames are kept on disk."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from benchmarks.video.files import SAMPLED, File
from benchmarks.video.timing import medians
from stages.domain.core.frames import Frames
from stages.domain.core.records import Clip, Sample, Segment, Span, Timeline
from stages.domain.core.timeline import interleave, mask, plain, sample_indices
from stages.lib.video.loader import FrameLoader
from stages.lib.video.reader import read_frames
from stages.runtime.frame_cache import FrameStore


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

    def process(frames: Frames) -> torch.Tensor:
        pixels = torch.from_numpy(frames.pixels.copy()).permute(0, 3, 1, 2)
        made = processor([pixels], do_sample_frames=False, input_data_format="channels_first", return_tensors="pt")
        values: torch.Tensor = made["pixel_values_videos"]
        return values

    def row(file: File) -> str:
        clips, sample = {file.name: as_clip(file)}, as_sample(plain(file.name, file.facts.frames, file.facts.rate))

        def loader(place: Path | None) -> FrameLoader:
            store = None if place is None else FrameStore(place, 10**10)
            return FrameLoader(clips, file.path.parent, 0, store=store, fit=lambda: fit_of(folder / "processor"))

        disk = loader(folder / "kept")
        whole, small = loader(None).load(sample), disk.load(sample)
        if not torch.equal(process(whole), process(disk.load(sample))):
            raise RuntimeError(f"{file.name}: the processor makes something else of the kept frames")
        taken = medians(
            {
                "decode": partial(loader(None).load, sample),
                "keep": lambda: loader(Path(tempfile.mkdtemp(dir=folder))).load(sample),
                "disk": partial(disk.load, sample),
                "decode+": lambda: process(loader(None).load(sample)),
                "disk+": lambda: process(disk.load(sample)),
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
        return f"| {file.name} | {' | '.join(cells)} |"

    return lines + [row(file) for file in files]
