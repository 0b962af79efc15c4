"""Results of checking a folder of videos, as tables for a terminal and as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stages.domain.core.records import SPLITS, Reject
from stages.runtime.plain import one_line
from stages.tools.dataset.check import Checked

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
        table.add_row("samples", ", ".join(f"{count:,} {task}" for task, count in found.samples.items()))
        out.print(table)
    if found.unused:
        out.print(f"columns not used: {', '.join(map(one_line, found.unused))}", soft_wrap=True, markup=False)
    _rejects(out, "rejected by ingest", found.rejects, every=every)
    for task, rejects in found.set_aside.items():
        _rejects(out, f"rejected by synthesize: {task}", rejects, every=every)


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
        "part_reasons": sorted(found.part_reasons),
        "set_aside": {
            task: [reject.model_dump(mode="json") for reject in rejects] for task, rejects in found.set_aside.items()
        },
    }


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
