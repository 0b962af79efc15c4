"""One measurement of :mod:`benchmarks.video.look`, in a process of its own: CPU seconds, its
children's included.

It runs with this checkout or with an earlier one on its path, so it calls only names that both
have.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.ingest.clips import Media
from stages.lib.annotations.jsonl import read_annotations
from stages.params import Params, load_params
from stages.tools.dataset.check import check

#: Names that this module has differ between the checkouts.
examining: Any = import_module("stages.ingest.examine")


def main() -> None:
    kind, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    params = load_params()
    work = _KINDS[kind](params, folder, count)
    if work is None:
        print("null")
        return
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
    asked = examining.Asked(name, whole=False) if hasattr(examining, "Asked") else name

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
        if len(examining._read_journal(reports, folder, None, *more)) != count:
            raise RuntimeError("the journal is not complete")

    return work


def unchanged(params: Params, folder: Path, count: int) -> Callable[[], Any]:
    """Ingest of the folder of :func:`second`, as the stage does it, a second time."""
    if find_spec("stages.ingest.unchanged") is None:
        return second(params, folder, count)
    stage: Any = import_module("stages.ingest.stage")
    ingest = params.ingest.model_copy(update={"source": str(folder), "format": "jsonl", "annotations": None})
    settings = params.model_copy(update={"ingest": ingest})
    reports = _examined_before(folder, count).rename(folder.with_name("reports.jsonl"))
    shutil.rmtree(folder / "state")  # the stage has its own, in the folder that it runs in
    project = folder.with_name("project")
    project.mkdir(exist_ok=True)
    os.chdir(project)
    known = examining.journal_file(ingest)
    known.parent.mkdir(parents=True, exist_ok=True)
    reports.replace(known)
    stage.ingest(settings)

    def read_again(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the source was read once more")

    stage.examine_source = read_again

    def work() -> None:
        if stage.ingest(settings).clips != count:
            raise RuntimeError("clips are missing")

    return work


def joined(_: Params, folder: Path, count: int) -> Callable[[], Any]:
    """Reading of rows that are all about one clip."""
    (folder / "a.mp4").touch()
    events = ({"start": number, "end": number + 1, "caption": f"He does {number}."} for number in range(count))
    rows = (json.dumps({"video": "a.mp4", "events": [event]}) + "\n" for event in events)
    (folder / "annotations.jsonl").write_text("".join(rows), encoding="utf-8")

    def work() -> None:
        (row,) = read_annotations(folder)[0]
        if len(row.events) != count:
            raise RuntimeError(f"{len(row.events)} of {count} rows were joined")

    return work


def mapped(params: Params, folder: Path, count: int) -> Callable[[], Any] | None:
    """``data check`` of a table that a mapping reads, with columns that it leaves out."""
    if find_spec("stages.lib.annotations.mapping") is None:
        return None
    table = "path,caption,views,likes\n" + "".join(f"clip_{n}.mp4,A man does thing {n}.,{n},7\n" for n in range(count))
    (folder / "table.csv").write_text(table, encoding="utf-8")
    mapping = folder / "mapping.yaml"
    mapping.write_text("video: path\ncaption: caption\nothers: ignore\n", encoding="utf-8")

    def work() -> None:
        found = check(params, str(folder), str(mapping), "table.csv")
        if (len(found.rejects), found.unused) != (count, ("views", "likes")):
            raise RuntimeError(f"{len(found.rejects)} of {count} rows were rejected, {found.unused} not used")

    return work


def near(_: Params, folder: Path, count: int) -> Callable[[], Any] | None:  # noqa: ARG001
    """Near-duplicates among clips of random hashes, of which each fiftieth shows what another
    does."""
    if find_spec("stages.ingest.curation") is None:
        return None
    import numpy as np

    from stages.domain.core.records import Clip
    from stages.ingest.curation.duplicates import PLACES, Signature, near_duplicates

    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, (count, PLACES), np.uint64)
    hashes[1::50] = hashes[::50] ^ (np.uint64(1) << rng.integers(0, 63, (len(hashes[1::50]), PLACES)).astype(np.uint64))
    colours, usable = np.zeros((PLACES, 48), np.int16), np.ones(PLACES, np.bool_)
    signatures = [Signature(one, colours, usable, 10.0) for one in hashes]
    facts: dict[str, Any] = {"codec": "h264", "width": 64, "height": 64, "frames": 80, "rate": "8", "split": "train"}
    clip = Clip(clip_id="0", source_id="0", path="0.mp4", sha256="0" * 64, **facts)
    clips = [clip.model_copy(update={"clip_id": str(number)}) for number in range(count)]

    def work() -> None:
        found = near_duplicates(clips, signatures)
        if len(found) != len(hashes[1::50]):
            raise RuntimeError(f"{len(found)} pairs were found")

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


_KINDS = {
    "clip": clip,
    "check": missing,
    "journal": journal,
    "second": second,
    "unchanged": unchanged,
    "joined": joined,
    "mapped": mapped,
    "near": near,
}

if __name__ == "__main__":
    main()
