"""Make the samples of every task from the clips: edit decision lists, questions, references, and a
contact sheet per task.

Run as ``python -m stages synthesize``; writes ``data/samples``.
"""

from __future__ import annotations

import sys
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

from stages.domain.tasks import mix_vid_qa
from stages.lib.rows.jsonl import write_json, write_rows
from stages.lib.rows.samples import sheet_samples
from stages.lib.video.open import frame_loader
from stages.params import Params, SynthesizeParams, load_params
from stages.runtime import paths
from stages.synthesize.captioner import Captioner, caption_manifest
from stages.synthesize.contact_sheets import sample_sheet
from stages.synthesize.manifest import REMEMBERED, Manifest
from stages.synthesize.shards import (
    INDEX_FILE,
    SampleCounts,
    TextOnlyResult,
    sort_rejects,
    synthesise_manifest,
    text_only,
)
from stages.synthesize.writer import Writer, write_samples
from stages.tracking.runs.run import stage_run
from stages.tracking.runs.scratch import scratch_of

MANIFEST = paths.CLIPS / paths.MANIFEST_FILE


def main() -> int:
    params = load_params()
    with scratch_of("synthesize") as scratch:
        if (problem := _synthesise(params, scratch.folder)) is not None:
            print(f"error: {problem}", file=sys.stderr)
            return 1
        scratch.clear()
    return 0


def _synthesise(params: Params, scratch: Path) -> str | None:
    """Make all samples. Returns the reason why they must not be used; None if they can be."""
    settings = params.synthesize
    with stage_run("synthesize", params) as run:
        manifest, captioner = _tell_events(params, scratch)
        counts = synthesise_manifest(manifest, settings, params.seed, scratch, paths.SAMPLES)
        writer = _write(settings, manifest, scratch, counts)
        guesses = text_only(manifest, settings, params.seed, scratch)
        written: dict[str, Any] = {"writer": writer.tally.table} if writer else {}
        if captioner is not None:
            written["captioner"] = captioner.table
        reasons = dict(sorted(counts.rejects.items()))
        guess_row = (
            None
            if guesses is None
            else {**guesses.guessed.model_dump(), "events": guesses.tried, "after": guesses.fitted}
        )
        write_json(
            paths.SAMPLES / paths.SUMMARY_FILE,
            {"samples": counts.samples, "rejects": reasons, "text_only": guess_row} | written,
        )
        decord = _write_sheets(params)
        total = sum(sum(tasks.values()) for tasks in counts.samples.values())
        cost = (writer.usage if writer else {}) | (captioner.usage if captioner else {})
        run.summary({"samples": total, "rejects": counts.rejects.total(), "frames_served_by_decord": decord, **cost})
        aside = "".join(f", {count} rejected: {reason}" for reason, count in reasons.items())
        print(
            f"synthesize: {total:,} samples of {len(settings.tasks.named)} tasks{aside}; sheets in"
            f" {paths.SAMPLES / 'sheets'}"
        )
    if not total:
        return f"synthesize: no clip gave a sample; {paths.SAMPLES / paths.REJECTS_FILE} says why for each"
    return None if guesses is None else _given_away(guesses, settings.max_text_only)


def _tell_events(params: Params, scratch: Path) -> tuple[Path, Captioner | None]:
    """Let the writer's model tell the events of clips without, if the parameters say so. Returns
    the manifest to make samples of."""
    writer = params.synthesize.writer
    if writer is None or writer.events is None:
        return MANIFEST, None
    captioner = Captioner(writer, frame_loader(params))
    manifest, told = caption_manifest(MANIFEST, captioner, scratch)
    write_rows(paths.SAMPLES / paths.EVENTS_FILE, told)
    print(f"synthesize: {captioner}")
    return manifest, captioner


def _write(settings: SynthesizeParams, manifest: Path, scratch: Path, counts: SampleCounts) -> Writer | None:
    """Let the writer of the parameters write questions and traces, and move samples that it failed
    to write to the rejects."""
    if settings.writer is None:
        return None
    writer = Writer(settings.writer)
    with closing(Manifest(manifest, scratch / INDEX_FILE)) as clips:
        set_aside = write_samples(paths.SAMPLES, lru_cache(REMEMBERED)(clips.named), settings.tasks.named, writer)
    with (paths.SAMPLES / paths.REJECTS_FILE).open("a", encoding="utf-8") as rejects:
        for split, rows in set_aside.items():
            if rows:
                counts.samples[split][mix_vid_qa.NAME] -= len(rows)
                counts.rejects.update(row.reason for row in rows)
                rejects.writelines(row.model_dump_json(exclude_none=True) + "\n" for row in rows)
    sort_rejects(paths.SAMPLES / paths.REJECTS_FILE)
    print(f"synthesize: {writer.tally}; {int(writer.usage.get('writer/requests', 0)):,} requests")
    return writer


def _write_sheets(params: Params) -> int:
    """Write a contact sheet per task; returns the number of frames that decord served for them."""
    loader = frame_loader(params)
    for task in params.synthesize.tasks.named:
        if samples := sheet_samples(params, task):
            sample_sheet(task, samples, loader, paths.SAMPLES / paths.SHEETS / f"{task}.png")
    return loader.stats.decord


def _given_away(guesses: TextOnlyResult, most: float) -> str | None:
    fraction = guesses.guessed
    print(
        f"synthesize: words alone tell {fraction.mean:.1%} [{fraction.low:.1%}, {fraction.high:.1%}] of"
        f" {guesses.tried} dark events"
        f" (synthesize.max_text_only is {most:.0%})"
    )
    if fraction.low <= most:
        return None
    return (
        f"synthesize.max_text_only: {fraction.mean:.1%} of the dark events can be guessed without the video,"
        f" {most:.1%} are allowed;"
        " exclude captions that are always the same (synthesize.tasks.dark_event_infer.events.forbidden), or raise"
        " the limit"
    )
