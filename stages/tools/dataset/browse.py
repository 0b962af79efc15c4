"""One static page of the data that opens offline: each task's samples as film strips, rejects with
reasons, the data card.

Outside DVC; ``vidbridge data browse`` calls it. The page holds its pictures and its script, and a
content-security policy that blocks all network access.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from stages.domain.core.prompts import render_question
from stages.domain.core.records import SPLITS, Clip, Reject, Sample
from stages.domain.core.timeline import conformed_frame, resolve
from stages.errors import InputError
from stages.lib.rows.jsonl import iterate_rows, read_json
from stages.lib.rows.samples import load_clips
from stages.lib.video.loader import FrameLoader, file_facts
from stages.lib.video.reader import choose
from stages.pages.render import fill_page, in_base64, reference_text
from stages.params import Params, load_params
from stages.runtime import paths
from stages.runtime.sources.videos import open_videos

#: Height of a frame on the page, and its JPEG quality: enough to see what happens.
FRAME_PX, JPEG_QUALITY = 84, 78
#: Outline of a frame, on each side; as wide as in ``browse.css``.
BORDER_PX = 3
#: Most rejects of each reason on the page; all are counted.
REJECTS_OF_A_REASON = 200


def browse(root: Path, out: Path, samples: int) -> Path:
    """Write the page with at most ``samples`` samples of each task and split. Returns its path.

    Raises:
        InputError: there is no data yet.
        VideoError: a clip cannot be read.
    """
    params = load_params(root / paths.PARAMS_FILE)
    if not (paths.SAMPLES / paths.SUMMARY_FILE).exists():
        raise InputError(f"{paths.SAMPLES / paths.SUMMARY_FILE}", "no samples yet", "run vidbridge run synthesize")
    clips = load_clips()
    loader = FrameLoader(clips, open_videos(params.ingest.roots), cache_bytes=0, manifest=paths.CLIPS)
    rows = [_sample(sample, clips, loader, params) for sample in _samples(params, samples)]
    rejects, reasons = _rejects()
    page = fill_page(
        "browse.html.j2",
        styles=("palette.css", "browse.css"),
        scripts=("browse.js",),
        params=params,
        summary=read_json(paths.SAMPLES / paths.SUMMARY_FILE),
        clips=read_json(paths.CLIPS / paths.SUMMARY_FILE),
        samples=rows,
        tasks=params.synthesize.tasks.named,
        splits=SPLITS,
        rejects=rejects,
        reasons=reasons,
        per_pair=samples,
        rejects_of_a_reason=REJECTS_OF_A_REASON,
        frame_px=FRAME_PX,
        border_px=BORDER_PX,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def _samples(params: Params, each: int) -> Iterator[Sample]:
    """Take one sample of each task, then the next of each, split after split: the top of the page
    has every kind."""
    for split in SPLITS:
        files = [paths.samples_file(paths.SAMPLES, split, task) for task in params.synthesize.tasks.named]
        of_task = [list(islice(iterate_rows(file, Sample), each)) for file in files]
        for row in zip_longest(*of_task):
            yield from (sample for sample in row if sample is not None)


def _sample(sample: Sample, clips: dict[str, Clip], loader: FrameLoader, params: Params) -> dict[str, Any]:
    frames = loader.load(sample)
    names = sample.timeline.clip_ids
    cells = []
    for pixels, source, time in zip(
        frames.pixels, resolve(sample.timeline, frames.indices), frames.times_s, strict=True
    ):
        clip = clips[source.clip_id]
        number = conformed_frame(source.frame, clip.frames, clip.rate, sample.timeline.rate)
        cells.append(
            {
                "kind": "dark" if source.dark else f"clip{names.index(source.clip_id)}" if len(names) > 1 else "plain",
                "letter": chr(ord("A") + names.index(source.clip_id)) if len(names) > 1 else "",
                "time": f"{float(time):.2f} s",
                "title": f"frame {number} of {source.clip_id}{', blacked out' if source.dark else ''}",
                "jpeg": "" if source.dark else _jpeg(pixels),
            }
        )
    height, width = frames.pixels.shape[1:3]
    return {
        "task": sample.task,
        "split": sample.split,
        "id": sample.sample_id,
        "cells": cells,
        "label": _label(cells),
        "width": max(24, round(FRAME_PX * width / height)),
        "question": render_question(sample.question, sample.options, params.prompt),
        "reference": reference_text(sample),
        "thinking": sample.trace.thinking if sample.trace else None,
        "sources": [
            _provenance(clips[name], chr(ord("A") + n) if len(names) > 1 else "") for n, name in enumerate(names)
        ],
    }


def _label(cells: Sequence[Mapping[str, str]]) -> str:
    """Text for screen readers of a film strip, which is one picture to them: how many frames, of
    which clips, and which are black."""
    letters = list(dict.fromkeys(cell["letter"] for cell in cells if cell["letter"]))
    parts = [f"{len(cells)} frames from {cells[0]['time']} to {cells[-1]['time']}"]
    parts += [f"clip {letter} at {_times(cells, 'letter', letter)}" for letter in letters]
    if dark := _times(cells, "kind", "dark"):
        parts.append(f"black at {dark}")
    return "; ".join(parts)


def _times(cells: Sequence[Mapping[str, str]], key: str, value: str) -> str:
    return ", ".join(cell["time"] for cell in cells if cell[key] == value)


def _provenance(clip: Clip, letter: str) -> dict[str, Any]:
    reader = (
        f"PyAV, since decord is not right on it: {', '.join(clip.hazards)}"
        if clip.hazards
        else choose(file_facts(clip))
    )
    about = [
        clip.path,
        f"{clip.frames} frames at {float(clip.rate):.6g}/s",
        f"{clip.width}x{clip.height} {clip.codec}",
        f"source {clip.source_id}",
        f"read by {reader}",
        f"licence {clip.licence or 'not stated'}",
        f"SHA-256 {clip.sha256[:12]}",
    ]
    if clip.normalised:
        about.insert(1, "re-encoded by ingest")
    if clip.excerpt is not None:
        start, end = clip.part_s
        about.insert(1, f"its part from {start:.6g} to {end:.6g} s, from frame {clip.excerpt.first}")
    return {"letter": letter, "about": " · ".join(about)}


def _rejects() -> tuple[list[dict[str, str]], list[tuple[str, str, int]]]:
    """Rejects, and their number for each stage and reason."""
    rows: list[dict[str, str]] = []
    counts: Counter[tuple[str, str]] = Counter()
    for stage, folder in (("ingest", paths.CLIPS), ("synthesize", paths.SAMPLES)):
        for reject in iterate_rows(folder / paths.REJECTS_FILE, Reject):
            counts[stage, reject.reason] += 1
            if counts[stage, reject.reason] <= REJECTS_OF_A_REASON:
                rows.append({"stage": stage, "reason": reject.reason, "item": reject.item, "detail": reject.detail})
    # By frequency, as in the terminal; within a reason in the file's order, which is a person's.
    rows.sort(key=lambda row: (row["stage"] != "ingest", -counts[row["stage"], row["reason"]], row["reason"]))
    return rows, [(stage, reason, count) for (stage, reason), count in counts.most_common()]


def _jpeg(pixels: npt.NDArray[np.uint8]) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((4 * FRAME_PX, FRAME_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="jpeg", quality=JPEG_QUALITY)
    return in_base64(buffer.getvalue())
