"""Export samples for other tools: frame-exact videos, rows for TRL, a dataset for
``datasets.load_dataset``.

Outside DVC; ``vidbridge data export`` calls it. A pool of workers encodes the videos; an existing
video is not encoded again.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from stages.domain.core.prompts import sample_prompt
from stages.domain.core.records import SPLITS, Sample, Split, TaskName
from stages.domain.core.replies import render_reply
from stages.domain.core.timeline import in_words
from stages.errors import InputError
from stages.lib.rows.jsonl import iterate_rows
from stages.lib.rows.samples import load_clips
from stages.lib.video.encoder import encode_stream
from stages.lib.video.loader import FrameLoader
from stages.pages.render import fill
from stages.params import Params, load_params
from stages.runtime import paths
from stages.runtime.sources.roots import Roots
from stages.runtime.sources.videos import open_videos
from stages.runtime.workers import map_whole

Kind = Literal["mp4", "trl", "datasets"]
KINDS: tuple[Kind, ...] = ("mp4", "trl", "datasets")

#: Bytes of decoded frames on their way to the encoder at once.
CHUNK_BYTES = 64_000_000
#: Quality at which the loss of the export's own encoding is invisible.
CRF, JPEG_QUALITY = 12, 95
#: Time limit for a sample of minutes at full resolution.
TIMEOUT_S = 1800.0


class Exported(NamedTuple):
    """Number of samples by split and task."""

    samples: dict[tuple[Split, TaskName], int]
    out: Path


def export(
    root: Path, out: Path, kind: Kind, tasks: Sequence[TaskName], splits: Sequence[Split], limit: int | None
) -> Exported:
    """Write the samples of these tasks and splits, at most ``limit`` of each pair.

    ``mp4``: ``videos/<name>.mp4``, each the sample's whole timeline, frame by frame, and
    ``samples.jsonl`` with their prompts. ``trl``: the same videos, and ``<split>.jsonl`` with the
    columns of TRL's trainers (prompt, completion if there is a trace). ``datasets``: Parquet files
    with the sampled frames as pictures; ``datasets.load_dataset(out)`` reads the folder.

    Raises:
        InputError: there are no such samples.
        WorkersError: a video could not be made.
    """
    params = load_params(root / paths.PARAMS_FILE)
    chosen = {
        (split, task): list(islice(_rows(split, task), limit))
        for split in splits
        for task in (tasks or params.synthesize.tasks.named)
    }
    if not any(chosen.values()):
        raise InputError(
            "export",
            f"no sample of {', '.join(tasks) or 'any task'} in {', '.join(splits)}",
            f"{paths.SAMPLES / paths.REJECTS_FILE} says what was rejected and why",
        )
    out.mkdir(parents=True, exist_ok=True)
    if kind == "datasets":
        _parquet(chosen, params, out)
    else:
        _videos([sample for samples in chosen.values() for sample in samples], params, out)
        _write_lines(chosen, params, out, _trl_row if kind == "trl" else _plain_row, one_file=kind == "mp4")
    _card(chosen, params, kind, out)
    return Exported({pair: len(samples) for pair, samples in chosen.items() if samples}, out)


def video_name(sample: Sample) -> str:
    """File name of a sample's video, valid on every system and unique to the sample."""
    readable = re.sub(r"[^A-Za-z0-9+-]+", "-", sample.sample_id).strip("-")[:80]
    return f"{readable}-{hashlib.sha256(sample.sample_id.encode()).hexdigest()[:8]}.mp4"


def render(sample: Sample, loader: FrameLoader, path: Path) -> None:
    """Write every frame of a sample's timeline as H.264, in order, at the timeline's rate.

    Frame ``i`` of the file is frame ``i`` of the timeline; an odd row or column at the edge is left
    out, since H.264 needs even ones.

    Raises:
        VideoError: a clip cannot be read, or ffmpeg failed.
    """
    timeline = sample.timeline
    first = loader.frames(timeline, [0])
    height, width = first.shape[1] // 2 * 2, first.shape[2] // 2 * 2
    at_once = max(1, CHUNK_BYTES // first[0].nbytes)

    def chunks() -> Iterator[Any]:
        for start in range(0, timeline.frames, at_once):
            pixels = loader.frames(timeline, range(start, min(start + at_once, timeline.frames)))
            yield pixels[:, :height, :width]

    path.parent.mkdir(parents=True, exist_ok=True)
    encode_stream(chunks(), width, height, timeline.rate, path, CRF)


def _rows(split: Split, task: TaskName) -> Iterator[Sample]:
    file = paths.samples_file(paths.SAMPLES, split, task)
    if not file.exists():
        raise InputError(str(file), "no such file", "run vidbridge run synthesize first")
    return iterate_rows(file, Sample)


@lru_cache(maxsize=1)
def _loader(roots: Roots) -> FrameLoader:
    return FrameLoader(load_clips(), open_videos(roots), cache_bytes=0, manifest=paths.CLIPS)


def _render_one(sample: Sample, roots: Roots, folder: Path) -> None:
    path = folder / video_name(sample)
    if not path.exists():
        render(sample, _loader(roots), path)


def _videos(samples: Sequence[Sample], params: Params, out: Path) -> None:
    work = partial(_render_one, roots=params.ingest.roots, folder=out / "videos")
    map_whole(
        work,
        samples,
        "export",
        timeout_s=TIMEOUT_S,
        name=lambda sample: sample.sample_id,
        remedy="the videos before it are kept, so type the same command again",
        unit="video",
    )


def _plain_row(sample: Sample, params: Params) -> dict[str, Any]:
    return {
        "sample_id": sample.sample_id,
        "task": sample.task,
        "split": sample.split,
        "video": f"videos/{video_name(sample)}",
        "sampled_frames": sample.sampled_frames,
        "prompt": sample_prompt(sample, params.prompt),
        "solution": sample.reference,
        "options": list(sample.options),
        "events": list(sample.events),
        "timeline": sample.timeline.model_dump(mode="json"),
    }


def _trl_row(sample: Sample, params: Params) -> dict[str, Any]:
    """Conversation row of TRL's trainers; columns other than prompt and completion go to the reward
    functions."""
    plain = _plain_row(sample, params)
    content = [
        {"type": "video", "video": plain["video"], "text": None},
        {"type": "text", "video": None, "text": plain["prompt"]},
    ]
    row: dict[str, Any] = {"prompt": [{"role": "user", "content": content}]}
    if sample.trace is not None:
        reply_content = [
            {"type": "text", "video": None, "text": render_reply(sample.trace.thinking, sample.trace.answer)}
        ]
        row["completion"] = [{"role": "assistant", "content": reply_content}]
    return row | {key: plain[key] for key in ("solution", "task", "sample_id", "options", "events")}


def _write_lines(
    chosen: dict[tuple[Split, TaskName], list[Sample]],
    params: Params,
    out: Path,
    row: Callable[[Sample, Params], dict[str, Any]],
    *,
    one_file: bool,
) -> None:
    files: dict[str, list[str]] = {}
    for (split, _), samples in chosen.items():
        lines = files.setdefault("samples.jsonl" if one_file else f"{split}.jsonl", [])
        lines += [json.dumps(row(sample, params), ensure_ascii=False) + "\n" for sample in samples]
    for name, lines in files.items():
        if lines:
            (out / name).write_text("".join(lines), encoding="utf-8")


def _parquet(chosen: dict[tuple[Split, TaskName], list[Sample]], params: Params, out: Path) -> None:
    import datasets

    # Its progress bars say "Downloading" and "Generating train split", which is wrong here.
    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "sample_id": datasets.Value("string"),
            "task": datasets.Value("string"),
            "clip_id": datasets.Value("string"),
            "frames": datasets.List(datasets.Image()),
            "times_s": datasets.List(datasets.Value("float64")),
            "prompt": datasets.Value("string"),
            "solution": datasets.Value("string"),
            "options": datasets.List(datasets.Value("string")),
            "events": datasets.List(datasets.Value("string")),
            "timeline": datasets.Value("string"),
        }
    )
    for split in dict.fromkeys(split for split, _ in chosen):
        samples = [sample for (of, _), of_task in chosen.items() if of == split for sample in of_task]
        if not samples:
            continue

        with tempfile.TemporaryDirectory(dir=out) as cache:
            dataset = datasets.Dataset.from_generator(
                partial(_picture_rows, samples, split, params),
                features=features,
                cache_dir=cache,
                fingerprint=_digest(samples),
            )
            (out / "data").mkdir(exist_ok=True)
            dataset.to_parquet(str(out / "data" / f"{split}-00000-of-00001.parquet"))


def _picture_rows(samples: Sequence[Sample], split: Split, params: Params) -> Iterator[dict[str, Any]]:
    loader = _loader(params.ingest.roots)
    for sample in tqdm(samples, desc=f"export {split}", unit="sample", mininterval=1):
        yield _picture_row(sample, params, loader)


def _picture_row(sample: Sample, params: Params, loader: FrameLoader) -> dict[str, Any]:
    frames = loader.load(sample)
    plain = _plain_row(sample, params)
    return {
        **{key: plain[key] for key in ("sample_id", "task", "prompt", "solution", "options", "events")},
        "clip_id": sample.clip_id,
        "frames": [{"bytes": _jpeg(frame), "path": None} for frame in frames.pixels],
        "times_s": [float(time) for time in frames.times_s],
        "timeline": json.dumps(plain["timeline"]),
    }


def _jpeg(frame: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    # Colours at full resolution: a coloured edge stays one.
    Image.fromarray(frame).save(buffer, format="jpeg", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _digest(samples: Sequence[Sample]) -> str:
    return hashlib.sha256("\n".join(sample.model_dump_json() for sample in samples).encode()).hexdigest()[:16]


def _card(chosen: dict[tuple[Split, TaskName], list[Sample]], params: Params, kind: Kind, out: Path) -> None:
    """Write a README beside the rows: their content, how to read them, and the videos' licences."""
    clip_ids = {sample.clip_id for samples in chosen.values() for sample in samples}
    licences = Counter(clip.licence or "not stated" for name, clip in load_clips().items() if name in clip_ids)
    page = fill(
        "dataset_card.md.j2",
        trim_blocks=True,
        kind=kind,
        counts={pair: len(samples) for pair, samples in chosen.items() if samples},
        splits=[split for split in SPLITS if any(of == split and samples for (of, _), samples in chosen.items())],
        recipe=params.recipe,
        seed=params.seed,
        frames=in_words(params.synthesize.sampled_frames),
        licences=sorted(licences.items()),
    )
    (out / "README.md").write_text(page, encoding="utf-8")
