"""Probe, validate, hash and normalise a folder of annotated videos into one manifest, with a reason for whatever is set aside.

Run as ``python -m stages ingest``; writes ``data/clips``.
"""

from __future__ import annotations

import time
from collections import Counter

from stages import layout
from stages.examining import copy_normalised, examine_source, journal_file
from stages.params import load_params
from stages.rows import write_json, write_rows
from stages.sources.annotation import SourceError
from stages.sources.clips import data_card, summarise
from stages.tracking.runs import stage_run
from stages.tracking.uri import STATE
from stages.video.encoder import ffmpeg_binary


def main() -> int:
    params = load_params()
    ffmpeg_binary()
    with stage_run("ingest", params) as run:
        started = time.monotonic()
        journal = journal_file(STATE, params.ingest)
        clips, rejects, hazards = examine_source(params.ingest, params.seed, journal)
        copy_normalised(clips, journal, layout.CLIPS)
        write_rows(layout.CLIPS / "manifest.jsonl", clips)
        write_rows(layout.CLIPS / "rejects.jsonl", rejects)
        summary = summarise(clips, rejects, hazards)
        write_json(layout.CLIPS / layout.SUMMARY_FILE, summary)
        (layout.CLIPS / layout.CARD_FILE).write_text(data_card(summary, params.recipe), encoding="utf-8")
        run.summary({"clips": len(clips), "rejects": len(rejects), "seconds": time.monotonic() - started})
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(r.reason for r in rejects).items()))
        print(f"ingest: {len(clips):,} clips accepted, {len(rejects):,} rejected{f' ({reasons})' if reasons else ''}")
        if not clips:
            shown = "".join(f"\n  {reject.item}: {reject.reason}: {reject.detail}" for reject in rejects[:10])
            raise SourceError(f"ingest.source: {params.ingest.source!r} gave no clip{shown or ': its annotation file is empty'}")
    return 0
