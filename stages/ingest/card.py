"""Counts of the accepted clips and the rejects, and the data card that shows them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from stages.domain.core.records import SPLITS, Clip, Reject
from stages.lib.annotations.annotation import PART_REASONS, rows_rejected


def summarise(clips: Sequence[Clip], rejects: Sequence[Reject], hazards: Mapping[str, int]) -> dict[str, Any]:
    """Count the properties of the data, without times or paths. ``hazards``: number of files that
    decord must not read, by reason."""
    of_rate: Counter[Fraction] = Counter()
    for clip in clips:
        of_rate[clip.rate] += clip.frames
    return {
        "accepted": len(clips),
        "rejected": dict(sorted(Counter(reject.reason for reject in rejects).items())),
        "splits": {split: sum(clip.split == split for clip in clips) for split in SPLITS},
        "sources": len({clip.source_id for clip in clips}),
        "frames": sum(clip.frames for clip in clips),
        "duration_s": round(float(sum(frames / rate for rate, frames in of_rate.items())), 3),
        "events": sum(len(clip.events) for clip in clips),
        "events_cut": sum(event.cut_s is not None for clip in clips for event in clip.events),
        "questions": sum(len(clip.questions) for clip in clips),
        "captions": sum((clip.caption is not None) + len(clip.captions or ()) for clip in clips),
        **_where_any(
            {
                "open_questions": sum(len(clip.open_questions or ()) for clip in clips),
                "parts": sum(clip.excerpt is not None for clip in clips),
                "divided_files": len({clip.path for clip in clips if clip.excerpt is not None}),
                # Where rejects are not of one row each, the reasons do not tell.
                "rows_rejected": rows_rejected(rejects) if any(r.rows is not None for r in rejects) else 0,
            }
        ),
        "durations": _durations(clips),
        "rates": _commonest(f"{float(clip.rate):.6g}/s{', variable' if clip.variable_rate else ''}" for clip in clips),
        "codecs": _commonest(clip.codec for clip in clips),
        "sizes": _commonest(f"{clip.width}x{clip.height}" for clip in clips),
        "licences": _commonest(clip.licence or "not stated" for clip in clips),
        "not_for_decord": dict(sorted(hazards.items())),
        "normalised": sum(clip.normalised for clip in clips),
    }


def _where_any(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts that most sources do not have, without those that are 0."""
    return {name: count for name, count in counts.items() if count}


#: Upper bounds of the bins of durations, in seconds.
_DURATIONS_S = (1, 2, 5, 10, 30, 60, 300)


#: Values that are listed by name; the others are counted together.
_LISTED = 20


def _durations(clips: Sequence[Clip]) -> dict[str, int]:
    names = [f"up to {bound} s" for bound in _DURATIONS_S] + [f"over {_DURATIONS_S[-1]} s"]
    counts = Counter(bisect_left(_DURATIONS_S, clip.frames / clip.rate) for clip in clips)
    return {name: counts[number] for number, name in enumerate(names) if counts[number]}


def _commonest(values: Iterable[str]) -> dict[str, int]:
    counted = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))
    others = sum(count for _, count in counted[_LISTED:])
    return dict(counted[:_LISTED]) | ({"others": others} if others else {})


def data_card(summary: Mapping[str, Any], recipe: str) -> str:
    """Format the counts of :func:`summarise` as Markdown, for users of the data."""
    parts = sum(count for reason, count in summary["rejected"].items() if reason in PART_REASONS)
    rows = summary.get("rows_rejected", sum(summary["rejected"].values()) - parts)
    lines = [
        f"# Clips of recipe `{recipe}`",
        "",
        f"{summary['accepted']:,} clips from {summary['sources']:,} sources, {summary['duration_s']:,} s,"
        f" {summary['frames']:,} frames; {summary['events']:,} events, {summary['captions']:,} captions,"
        f" {summary['questions'] + summary.get('open_questions', 0):,} questions.",
        f"{rows:,} rows were rejected; `rejects.jsonl` says why for each.",
    ]
    if summary.get("parts"):
        lines.append(
            f"{summary['parts']:,} clips are parts of {summary['divided_files']:,} files; no file's parts are in two"
            " splits."
        )
    if parts:
        lines.append(
            f"Of other rows {parts:,} events, questions, subjects or captions were rejected, and the rest was kept."
        )
    if summary["events_cut"]:
        lines.append(
            f"{summary['events_cut']:,} events reached beyond their clip within `ingest.tolerance` and were cut at its"
            " edge."
        )
    tables = {
        "split": "splits",
        "duration": "durations",
        "frame rate": "rates",
        "size": "sizes",
        "codec": "codecs",
        "licence": "licences",
        "rejected because": "rejected",
        "decord must not read it because": "not_for_decord",
    }
    for title, key in tables.items():
        rows = [f"| {cell(name)} | {count:,} |" for name, count in summary[key].items()]
        lines += [
            "",
            f"| {title} | {'rows or parts' if key == 'rejected' else 'clips'} |",
            "|---|---|",
            *(rows or ["| none | 0 |"]),
        ]
    if summary["normalised"]:
        lines += ["", f"{summary['normalised']:,} of the latter were encoded anew."]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Escape data for a cell of a table in Markdown: it must not end the cell or open a tag."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
