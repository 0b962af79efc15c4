"""``vidbridge data``: what is, or would become, of videos. Nothing here runs a stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.console import show
from flows.errors import UsageError
from flows.recipes import params_or_default
from flows.repro.names import is_utf8, unstorable_names
from stages.domain.core.records import SPLITS, Reject
from stages.runtime.plain import one_line

#: Rejects that are shown for each reason, unless all are asked for.
EXAMPLES = 3


def check(root: Path | None, folder: Path, annotation_format: str | None, annotations: str | None, *, every: bool) -> bool:
    """Print what ingest would accept and set aside of a folder, why, and which samples it would give; False when it accepts nothing."""
    from stages.tools.dataset.check import SourceError
    from stages.tools.dataset.check import check as examine

    if not is_utf8(str(folder)):
        raise UsageError(f"folder: {str(folder)!r}: its name is not UTF-8; rename it")
    params, out = params_or_default(root), show.console()
    try:
        found = examine(params, folder, annotation_format, annotations)
    except SourceError as error:
        # As it was typed here.
        told = str(error).replace("ingest.source", "folder").replace("ingest.annotations", "--annotations")
        if annotation_format is not None:
            told = told.replace("ingest.format", "--format")
        raise UsageError(told) from error
    if root is None:
        out.print(f"no project here: with the parameters of the recipe {params.recipe}")
    seconds = float(sum(clip.frames / clip.rate for clip in found.clips))
    splits = Counter(clip.split for clip in found.clips)
    parts = sum(reject.reason in found.part_reasons for reject in found.rejects)
    rows = len(found.rejects) - parts
    beside = f"; {parts:,} events, questions, subjects or captions of rows set aside beside them" if parts else ""
    out.print(f"{len(found.clips):,} accepted, {rows:,} set aside, of {len(found.clips) + rows:,}{beside}")
    if found.clips:
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_row("splits", ", ".join(f"{splits[split]:,} {split}" for split in SPLITS if splits[split]))
        table.add_row("duration", f"{seconds:,.1f} s, {seconds / len(found.clips):.1f} s a clip")
        if cut := sum(event.cut_s is not None for clip in found.clips for event in clip.events):
            table.add_row(
                "events cut",
                f"{cut:,} of {sum(len(clip.events) for clip in found.clips):,} at their clip's edge (ingest.tolerance)",
            )
        table.add_row("codecs", _counts(Counter(clip.codec for clip in found.clips)))
        table.add_row("sizes", _counts(Counter(f"{clip.width}x{clip.height}" for clip in found.clips)))
        table.add_row("not for decord", _counts(found.hazards) if found.hazards else "none: decord is right on all of them")
        table.add_row("samples", ", ".join(f"{count:,} {task}" for task, count in found.samples.items()))
        out.print(table)
    _rejects(out, "set aside by ingest", found.rejects, every=every)
    for task, rejects in found.set_aside.items():
        _rejects(out, f"set aside by synthesize: {task}", rejects, every=every)
    for problem in islice(unstorable_names(folder), EXAMPLES):
        out.print(problem, style="red", soft_wrap=True)
    return bool(found.clips)


def export(root: Path, out: Path, kind: str, tasks: Sequence[str], splits: Sequence[str], limit: int | None) -> None:
    """Write samples for other tools, and say what was written and how it is read."""
    from stages.domain.tasks import TASK_NAMES
    from stages.tools.dataset.export import KINDS
    from stages.tools.dataset.export import export as write

    kinds, names, wanted = _among("--as", [kind], KINDS), _among("--task", tasks, TASK_NAMES), _among("--split", splits, SPLITS)
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / "README.md").exists())):
        raise UsageError(f"out: {str(out)!r} holds something else; name a new folder, or one that an export has made")
    made = write(root, out, kinds[0], names, wanted or SPLITS, limit)
    console = show.console()
    for (split, task), count in made.samples.items():
        console.print(f"{count:>8,}  {task}, {split}")
    read = "its samples.jsonl names each video" if kinds[0] == "mp4" else f"datasets.load_dataset({str(out)!r}) reads it"
    show.say(f"written: {out} ({read}; README.md says what is in it)")


def browse(root: Path, out: Path, samples: int) -> None:
    """Write the page of samples and rejects."""
    from stages.tools.dataset.browse import browse as write

    path = write(root, out, samples)
    show.say(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB, opens offline)")


Name = TypeVar("Name", bound=str)


def _among(option: str, given: Sequence[str], known: Sequence[Name]) -> list[Name]:
    """What was given, each one of those that are known."""
    for value in given:
        if value not in known:
            raise UsageError(f"{option}: {value!r} is unknown; choose among {', '.join(known)}")
    return [name for value in given for name in known if name == value]


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
        for reject in listed if every else listed[:EXAMPLES]:
            out.print(f"        {one_line(reject.item)}: {one_line(reject.detail)}")
        if not every and len(listed) > EXAMPLES:
            out.print(f"        … and {len(listed) - EXAMPLES:,} more; --all lists them")
