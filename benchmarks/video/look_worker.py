"""One measurement of :mod:`benchmarks.video.look`, in a process of its own: CPU seconds, its
children's included.

It runs with this checkout or with an earlier one on its path, so it calls only names that both
have.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.ingest import examine as examining
from stages.ingest.clips import Media
from stages.params import Params, load_params
from stages.tools.dataset.check import check


def main() -> None:
    kind, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    params = load_params()
    work = {"clip": clip, "check": missing, "journal": journal, "second": second}[kind](params, folder, count)
    taken = []
    # What takes half a minute needs no repetition, nor what is imported only once.
    if count == 1:
        work()
    for _ in range(5 if count == 1 else 1):
        before = sum(os.times()[:4])
        work()
        taken.append(sum(os.times()[:4]) - before)
    print(json.dumps(sorted(taken)[len(taken) // 2]))


def clip(_: Params, folder: Path, count: int) -> Callable[[], Any]:  # noqa: ARG001
    """Examination of one video; sampled, if this checkout can."""
    name = next(folder.glob("*.mp4")).name
    asked: Any = examining.Asked(name, whole=False) if hasattr(examining, "Asked") else name

    def work() -> None:
        report = examining.examine(asked, folder, None)
        if report.media is None:
            raise RuntimeError(f"{name}: {report.problem}")

    return work


def missing(params: Params, folder: Path, count: int) -> Callable[[], Any]:
    """``data check`` of rows whose videos are missing."""
    (folder / "annotations.jsonl").write_text("".join(_row(n) for n in range(count)), encoding="utf-8")

    def work() -> None:
        found = check(params, str(folder), "jsonl", None)
        if len(found.rejects) != count:
            raise RuntimeError(f"{len(found.rejects)} of {count} rows were rejected")

    return work


def second(params: Params, folder: Path, count: int) -> Callable[[], Any]:
    """Examination of a folder whose files are all in the journal and have not changed."""
    settings = params.ingest.model_copy(update={"source": str(folder), "format": "jsonl", "annotations": None})
    reports = _examined_before(folder, count)

    def work() -> None:
        clips, *_ = examining.examine_source(settings, 7, reports)
        if len(clips) != count:
            raise RuntimeError(f"{len(clips)} of {count} clips were kept")

    return work


def journal(params: Params, folder: Path, count: int) -> Callable[[], Any]:
    """The part of :func:`second` that reads the journal and the state of each file."""
    reports = _examined_before(folder, count)
    more = (params.ingest.frame_rate,) if hasattr(params.ingest, "frame_rate") else ()

    def work() -> None:
        read: Any = examining._read_journal
        if len(read(reports, folder, None, *more)) != count:
            raise RuntimeError("the journal is not complete")

    return work


def _examined_before(folder: Path, count: int) -> Path:
    """A folder of files, and a journal that has a report of each."""
    reports = folder / "state" / "journal.jsonl"
    reports.parent.mkdir(exist_ok=True)
    known = examining.FileReport.model_fields
    with (
        reports.open("w", encoding="utf-8") as lines,
        (folder / "annotations.jsonl").open("w", encoding="utf-8") as rows,
    ):
        for number in range(count):
            rows.write(_row(number))
            path = folder / _name(number)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(str(number).encode())
            media = Media.model_validate(
                {
                    "sha256": hashlib.sha256(str(number).encode()).hexdigest(),
                    "codec": "h264", "width": 1280, "height": 720, "rate": "30", "frames": 300, "duration_s": "10",
                    "starts_s": "0", "variable_rate": False, "hazards": (),
                }
            )  # fmt: skip
            status = path.stat()
            report: dict[str, Any] = {"video": _name(number), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
            # A folder of this size is validated by samples, where there is a choice.
            report |= {"whole": False} if "whole" in known else {}
            lines.write(examining.FileReport(**report, media=media).model_dump_json(exclude_none=True) + "\n")
    return reports


def _name(number: int) -> str:
    return f"videos/{number % 100:03d}/clip_{number:06d}.mp4"


def _row(number: int) -> str:
    events = [{"start": 0.5, "end": 1.5, "caption": "He does it."}]
    row = {"video": _name(number), "caption": f"A man does thing {number}.", "label": "x", "events": events}
    return json.dumps(row) + "\n"


if __name__ == "__main__":
    main()
