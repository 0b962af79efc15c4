"""Probe, validate, hash and normalise a folder of annotated videos into one manifest, with a reason
for each reject.

Run as ``python -m stages ingest``; writes ``data/clips``.
"""

from __future__ import annotations

import time
from collections import Counter

from stages.ingest.card import data_card, summarise
from stages.ingest.curation.curator import Curator
from stages.ingest.curation.grouping import warning
from stages.ingest.examine import copy_normalised, examine_source, journal_file
from stages.lib.annotations.annotation import SourceError
from stages.lib.rows.jsonl import write_json, write_rows
from stages.lib.video.encoder import ffmpeg_binary
from stages.params import load_params
from stages.runtime import paths
from stages.runtime.sources.watch import listing_digest, note_listing
from stages.tracking.runs.run import stage_run


def main() -> int:
    params = load_params()
    ffmpeg_binary()
    with stage_run("ingest", params) as run:
        started = time.monotonic()
        journal = journal_file(params.ingest)
        curator = Curator(params.ingest)
        seen = listing_digest(params.ingest.roots)
        clips, rejects, hazards, _ = examine_source(params.ingest, params.seed, journal, curator=curator)
        copy_normalised(clips, journal, paths.CLIPS)
        write_rows(paths.CLIPS / paths.MANIFEST_FILE, clips)
        write_rows(paths.CLIPS / paths.REJECTS_FILE, rejects)
        if params.ingest.near_duplicates is not None:
            write_rows(paths.CLIPS / paths.NEAR_DUPLICATES_FILE, curator.pairs)
        summary = summarise(clips, rejects, hazards) | curator.summary(clips)
        write_json(paths.CLIPS / paths.SUMMARY_FILE, summary)
        card = data_card(summary, params.recipe) + curator.card(clips)
        (paths.CLIPS / paths.CARD_FILE).write_text(card, encoding="utf-8")
        run.summary({"clips": len(clips), "rejects": len(rejects), "seconds": time.monotonic() - started})
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(r.reason for r in rejects).items()))
        print(f"ingest: {len(clips):,} clips accepted, {len(rejects):,} rejected{f' ({reasons})' if reasons else ''}")
        if warned := warning(curator.names):
            print(f"ingest: {warned}")
        if seen is not None:
            note_listing(params.ingest.roots, seen)
        if not clips:
            details = "".join(f"\n  {reject.item}: {reject.reason}: {reject.detail}" for reject in rejects[:10])
            raise SourceError(
                "ingest.source",
                f"{params.ingest.source!r} gave no clip{details or ': its annotation file is empty'}",
                "look at them with: vidbridge data check FOLDER",
            )
    return 0
