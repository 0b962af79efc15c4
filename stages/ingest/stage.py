"""Probe, validate, hash and normalise a folder of annotated videos into one manifest, with a reason
for each reject.

Run as ``python -m stages ingest``; writes ``data/clips``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from stages.domain.core.records import Record, Reject
from stages.ingest import unchanged
from stages.ingest.card import data_card, summarise
from stages.ingest.curation.curator import Curator
from stages.ingest.curation.grouping import warning
from stages.ingest.examine import copy_normalised, examine_source, journal_file
from stages.ingest.unchanged import Outcome
from stages.lib.annotations.annotation import SourceError
from stages.lib.rows.jsonl import read_rows, write_json, write_rows
from stages.lib.video.encoder import ffmpeg_binary
from stages.params import Params, load_params
from stages.runtime import paths
from stages.runtime.sources.watch import listing_digest, note_listing
from stages.tracking.runs.run import stage_run


def main() -> int:
    params = load_params()
    ffmpeg_binary()
    with stage_run("ingest", params) as run:
        started = time.monotonic()
        seen = listing_digest(params.ingest.roots)
        outcome = ingest(params)
        rejected = sum(outcome.rejects.values())
        run.summary({"clips": outcome.clips, "rejects": rejected, "seconds": time.monotonic() - started})
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(outcome.rejects.items()))
        print(f"ingest: {outcome.clips:,} clips accepted, {rejected:,} rejected{f' ({reasons})' if reasons else ''}")
        if outcome.warning:
            print(f"ingest: {outcome.warning}")
        if seen is not None:
            note_listing(params.ingest.roots, seen)
        if not outcome.clips:
            rejects = read_rows(paths.CLIPS / paths.REJECTS_FILE, Reject)
            details = "".join(f"\n  {reject.item}: {reject.reason}: {reject.detail}" for reject in rejects[:10])
            raise SourceError(
                "ingest.source",
                f"{params.ingest.source!r} gave no clip{details or ': its annotation file is empty'}",
                "look at them with: vidbridge data check FOLDER",
            )
    return 0


def ingest(params: Params) -> Outcome:
    """Write the clips of the source, or take those of the last time, if nothing has changed."""
    journal = journal_file(params.ingest)
    before = unchanged.identity(params)
    if (last := unchanged.take(before, journal, paths.CLIPS)) is not None:
        print("ingest: nothing has changed since the last time; its result is taken")
        return last
    curator = Curator(params.ingest)
    clips, rejects, hazards, *_ = examine_source(params.ingest, params.seed, journal, curator=curator)
    copy_normalised(clips, journal, paths.CLIPS)
    tables: dict[str, Sequence[Record]] = {paths.MANIFEST_FILE: clips, paths.REJECTS_FILE: rejects}
    if params.ingest.near_duplicates is not None:
        tables[paths.NEAR_DUPLICATES_FILE] = curator.pairs
    for name, rows in tables.items():
        write_rows(paths.CLIPS / name, rows)
    summary = summarise(clips, rejects, hazards) | curator.summary(clips)
    write_json(paths.CLIPS / paths.SUMMARY_FILE, summary)
    card = data_card(summary, params.recipe) + curator.card(clips)
    (paths.CLIPS / paths.CARD_FILE).write_text(card, encoding="utf-8")
    counts = Counter(reject.reason for reject in rejects)
    outcome = Outcome(clips=len(clips), rejects=counts, warning=warning(curator.names))
    files = [paths.CLIPS / name for name in (*tables, paths.SUMMARY_FILE, paths.CARD_FILE)]
    unchanged.keep(params, before, journal, files, clips, outcome)
    return outcome
