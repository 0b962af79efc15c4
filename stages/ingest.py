"""Probe, validate, hash and normalise a folder of annotated videos into one manifest, with a reason for whatever is set aside.

Run as ``python -m stages ingest``; writes ``data/clips``.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from functools import partial
from pathlib import Path

from stages import layout
from stages.domain.records import Clip, Reject, Split
from stages.params import IngestParams, Params, load_params
from stages.rows import write_json, write_rows
from stages.sources.clips import Media, summarise, to_clip, without_duplicates
from stages.sources.jsonl import Annotation, SourceError, read_annotations
from stages.sources.split import assign_splits
from stages.tracking.runs import stage_run
from stages.video.encoder import ffmpeg_binary, validate
from stages.video.errors import VideoError
from stages.video.probe import probe
from stages.workers import map_items

Examined = tuple[Clip | Reject, tuple[str, ...]]


def main() -> int:
    params = load_params()
    ffmpeg_binary()
    with stage_run("ingest", params) as run:
        started = time.monotonic()
        clips, rejects, hazards = ingest(params)
        write_rows(layout.CLIPS / "manifest.jsonl", clips)
        write_rows(layout.CLIPS / "rejects.jsonl", rejects)
        write_json(layout.CLIPS / layout.SUMMARY_FILE, summarise(clips, rejects, hazards))
        run.summary({"clips": len(clips), "rejects": len(rejects), "seconds": time.monotonic() - started})
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(r.reason for r in rejects).items()))
        print(f"ingest: {len(clips):,} clips accepted, {len(rejects):,} rejected{f' ({reasons})' if reasons else ''}")
        if not clips:
            shown = "".join(f"\n  {reject.item}: {reject.reason}: {reject.detail}" for reject in rejects[:10])
            raise SourceError(f"ingest.source: {params.ingest.source!r} gave no clip{shown or ': its annotation file is empty'}")
    return 0


def ingest(params: Params) -> tuple[list[Clip], list[Reject], Counter[str]]:
    """Clips in order of their id, what was set aside in order of its name, and what keeps decord from files.

    Raises:
        SourceError: the source folder cannot be used at all.
    """
    folder = Path(params.ingest.source)
    rows, rejects = read_annotations(folder)
    splits, conflicts = assign_splits(rows, params.ingest, params.seed)
    placed = [(row, splits[row.clip_id]) for row in sorted(rows, key=lambda row: row.clip_id) if row.clip_id in splits]
    examined = list(map_items(partial(_examine, folder=folder, params=params.ingest), placed, "ingest"))
    clips, duplicates = without_duplicates(result for result, _ in examined if isinstance(result, Clip))
    rejects += conflicts + duplicates + [result for result, _ in examined if isinstance(result, Reject)]
    return clips, sorted(rejects, key=lambda r: (r.item, r.reason)), Counter(slug for _, hazards in examined for slug in hazards)


def _examine(placed: tuple[Annotation, Split], folder: Path, params: IngestParams) -> Examined:
    """One file: what it holds, that all of it decodes, and the clip that it makes. Runs in a worker."""
    row, split = placed
    path = folder / row.video
    try:
        found = probe(path)
        decoded = validate(path)
        if decoded != found.frames:
            raise VideoError("frame-count", f"{row.video}: {found.frames} frames are stored, {decoded} decode; re-encode it")
    except VideoError as error:
        return Reject(item=row.clip_id, reason=error.reason, detail=error.detail), ()
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    facts = (found.codec, found.width, found.height, found.rate, found.frames, found.duration_s, found.variable_rate)
    return to_clip(row, split, Media(sha256, *facts), params), found.hazards
