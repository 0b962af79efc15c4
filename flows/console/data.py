"""Results of checking a folder of videos, as tables for a terminal and as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stages.domain.core.records import SPLITS, Reject
from stages.runtime import paths
from stages.runtime.plain import one_line
from stages.tools.dataset.check import Checked
from stages.tools.dataset.cut import Cut

#: Rejects printed for each reason, unless all are requested.
_EXAMPLES = 3


def show_checked(out: Console, found: Checked, *, every: bool) -> None:
    """Print what ingest would accept and reject, and why. ``every``: print each reject, not only
    some of each reason.
    """
    seconds = float(sum(clip.frames / clip.rate for clip in found.clips))
    splits = Counter(clip.split for clip in found.clips)
    read, used = found.rows
    beside = f"; {found.files_rejected:,} files that no row names" if found.files_rejected else ""
    if found.parts_rejected:
        beside += f"; {found.parts_rejected:,} events, questions, subjects or captions of rows rejected beside them"
    out.print(
        f"{len(found.clips):,} accepted; {read:,} rows read: {used:,} used, {found.rows_rejected:,} rejected{beside}"
    )
    if found.clips:
        table = Table(box=None, show_header=False, pad_edge=False)
        if of_files := {clip.path for clip in found.clips if clip.excerpt is not None}:
            parts = sum(clip.excerpt is not None for clip in found.clips)
            table.add_row("parts", f"{parts:,} of the clips, of {len(of_files):,} files")
        table.add_row("splits", ", ".join(f"{splits[split]:,} {split}" for split in SPLITS if splits[split]))
        table.add_row("duration", f"{seconds:,.1f} s, {seconds / len(found.clips):.1f} s a clip")
        if cut := sum(event.cut_s is not None for clip in found.clips for event in clip.events):
            table.add_row(
                "events cut",
                f"{cut:,} of {sum(len(clip.events) for clip in found.clips):,} at their clip's edge (ingest.tolerance)",
            )
        table.add_row("annotations", ", ".join(f"{count:,} {name}" for name, count in _told(found).items()))
        table.add_row("codecs", _counts(Counter(clip.codec for clip in found.clips)))
        table.add_row("sizes", _counts(Counter(f"{clip.width}x{clip.height}" for clip in found.clips)))
        table.add_row(
            "not for decord", _counts(found.hazards) if found.hazards else "none: decord is right on all of them"
        )
        for name, counts in _curated(found):
            table.add_row(name, counts)
        table.add_row("samples", ", ".join(f"{count:,} {task}" for task, count in found.samples.items()))
        out.print(table)
    if found.unused:
        out.print(f"columns not used: {', '.join(map(one_line, found.unused))}", soft_wrap=True, markup=False)
    if found.unread:
        names = ", ".join(f"{one_line(task)} ({count:,} clips)" for task, count in found.unread.items())
        out.print(f"answers that no task of synthesize.tasks reads: {names}", soft_wrap=True, markup=False)
    if found.names_alike:
        out.print(Text(one_line(f"warning: {found.names_alike}"), "yellow"), soft_wrap=True)
    _near_duplicates(out, found, every=every)
    _rejects(out, "rejected by ingest", found.rejects, every=every)
    for task, rejects in found.set_aside.items():
        _rejects(out, f"rejected by synthesize: {task}", rejects, every=every)


def show_cut(out: Console, found: Cut, folder: Path, file: Path) -> None:
    """Print what a cut gave and left out, and the next command."""
    out.print(
        f"{found.recordings:,} recordings of {float(found.recordings_s):,.1f} s, {found.shots:,} shots:"
        f" {found.clips:,} clips of {float(found.clips_s):,.1f} s"
    )
    if found.short:
        out.print(f"{found.short:,} shots of {float(found.short_s):,.1f} s left out: shorter than --min-s (or: --join)")
    _rejects(out, "cannot be read", found.rejects, every=False)
    out.print(f"written: {one_line(str(file))}", soft_wrap=True)
    named = "" if file == folder / paths.ANNOTATIONS_FILE else f" --annotations {one_line(str(file))}"
    out.print(f"next: vidbridge data check {one_line(str(folder))} --format jsonl{named}", soft_wrap=True)


def cut_document(found: Cut) -> dict[str, Any]:
    """Plain values of the same."""
    return {
        "recordings": found.recordings,
        "recordings_s": float(found.recordings_s),
        "shots": found.shots,
        "clips": found.clips,
        "clips_s": float(found.clips_s),
        "short": found.short,
        "short_s": float(found.short_s),
        "rejects": [reject.model_dump(mode="json") for reject in found.rejects],
    }


def checked_document(found: Checked) -> dict[str, Any]:
    """Plain values of the same, with each clip and reject."""
    return {
        "accepted": len(found.clips),
        "rows": {"read": found.rows.read, "used": found.rows.used, "rejected": found.rows_rejected},
        "reasons": dict(Counter(reject.reason for reject in found.rejects).most_common()),
        "splits": dict(Counter(clip.split for clip in found.clips)),
        "seconds": float(sum(clip.frames / clip.rate for clip in found.clips)),
        "hazards": dict(found.hazards),
        "samples": dict(found.samples),
        "clips": [clip.model_dump(mode="json") for clip in found.clips],
        "rejects": [reject.model_dump(mode="json") for reject in found.rejects],
        "unused_columns": list(found.unused),
        "unread_answers": dict(found.unread),
        "curated": found.curated,
        "near_duplicates": [pair.model_dump(mode="json") for pair in found.near_duplicates],
        "names_alike": found.names_alike or None,
        "part_reasons": sorted(found.part_reasons),
        "set_aside": {
            task: [reject.model_dump(mode="json") for reject in rejects] for task, rejects in found.set_aside.items()
        },
    }


def _curated(found: Checked) -> Iterator[tuple[str, str]]:
    """Rows of the table on what curation counted; none if it is off."""
    if "shots" in found.curated:
        yield "shots", _counts(Counter(found.curated["shots"]))
        yield "flagged", _counts(Counter(found.curated["flagged"])) or "none: no static, black or letterboxed clip"
    if "near_duplicates" in found.curated:
        pairs = found.curated["near_duplicates"]
        yield "near-duplicates", f"{pairs['pairs']:,} pairs, {pairs['across_splits']:,} of them across splits"


def _near_duplicates(out: Console, found: Checked, *, every: bool) -> None:
    """Print pairs of near-duplicates: all that are across splits, and some of the others."""
    across = [pair for pair in found.near_duplicates if pair.across_splits]
    within = [pair for pair in found.near_duplicates if not pair.across_splits]
    if found.near_duplicates:
        out.print(Text("\nnear-duplicates", "bold"))
    for pair in (*across, *(within if every else within[:_EXAMPLES])):
        places = " and ".join(dict.fromkeys(pair.splits))
        names = ", ".join(one_line(clip) for clip in pair.clips)
        out.print(Text(f"        {names}: {pair.bits:g} of 63 bits apart, in {places}"), soft_wrap=True)
    if not every and len(within) > _EXAMPLES:
        out.print(f"        … and {len(within) - _EXAMPLES:,} more within a split; --all lists them")


def _told(found: Checked) -> dict[str, int]:
    """Count what the annotations tell of the clips."""
    clips = found.clips
    return {
        "events": sum(len(clip.events) for clip in clips),
        "captions": sum((clip.caption is not None) + len(clip.captions or ()) for clip in clips),
        "multiple-choice questions": sum(len(clip.questions) for clip in clips),
        "open questions": sum(len(clip.open_questions or ()) for clip in clips),
    }


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count:,} {one_line(name)}" for name, count in counter.most_common())


def _rejects(out: Console, title: str, rejects: Sequence[Reject], *, every: bool) -> None:
    if not rejects:
        return
    out.print(Text(f"\n{title}", "bold"))
    by_reason: dict[str, list[Reject]] = {}
    for reject in rejects:
        by_reason.setdefault(reject.reason, []).append(reject)
    for reason, listed in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        out.print(Text.assemble(f"{len(listed):>6,}  ", (one_line(reason), "yellow")))
        for reject in listed if every else listed[:_EXAMPLES]:
            out.print(f"        {one_line(reject.item)}: {one_line(reject.detail)}")
        if not every and len(listed) > _EXAMPLES:
            out.print(f"        … and {len(listed) - _EXAMPLES:,} more; --all lists them")
