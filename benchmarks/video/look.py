"""Looking at a source: validation of a clip, rows without videos, and a folder that was seen
before; against an earlier checkout, in turn."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks.video.files import File

#: Rows without videos, clips of a folder that was seen before, and rows about one clip.
ROWS, CLIPS, JOINED = 20_000, 100_000, 5_000
#: Kinds of lines about the folder that was seen before.
_SEEN = ("journal", "second", "unchanged")
_HERE = Path(__file__).parents[2]
_WORKER = Path(__file__).with_name("look_worker.py")


class Line(NamedTuple):
    name: str
    kind: str
    items: int
    bound_s: float | None


LINES = (
    Line("ingest of a 10 s clip of 720p, sampled validation (before: whole)", "clip", 1, 0.25),
    Line(f"`data check` of {ROWS:,} rows whose videos are missing", "check", ROWS, 10),
    Line(f"second look at {CLIPS:,} clips: journal, and state of each file", "journal", CLIPS, 3),
    Line("the same with annotations, conversion and splits", "second", CLIPS, None),
    Line("the whole of it where nothing has changed: the last result is taken", "unchanged", CLIPS, 3),
    Line(f"{JOINED:,} rows about one clip are joined", "joined", JOINED, None),
    Line(f"`data check` of {ROWS:,} mapped rows whose videos are missing", "mapped", ROWS, None),
    Line(f"near-duplicates among {ROWS:,} clips of one length", "near", ROWS, None),
    Line(f"near-duplicates among {CLIPS:,} clips of one length (before: not measured)", "near", CLIPS, None),
)


def look(folder: Path, clip: File, old: Path | None, rounds: int) -> list[str]:
    """Measure each line with this checkout and, if there is one, with the earlier one at
    ``old``."""
    out = ["| what | before, CPU s | now, CPU s | now / before | bound, s |", "|---|---|---|---|---|"]
    for line in LINES:
        place = folder / (_SEEN[0] if line.kind in _SEEN else line.kind)
        place.mkdir(exist_ok=True)
        if line.kind == "clip":
            shutil.copy(clip.path, place)
        # All with all of 100,000 take minutes.
        roots = ([old] if old and (line.kind, line.items) != ("near", CLIPS) else []) + [_HERE]
        taken: dict[Path, list[float]] = {root: [] for root in roots}
        for _ in range(rounds):
            for root, times in taken.items():
                if (seconds := _measured(root, line, place)) is not None:
                    times.append(seconds)
        now = statistics.median(taken[_HERE])
        earlier = taken.get(old) if old else None
        before = statistics.median(earlier) if earlier else None
        cells = ["-" if before is None else f"{before:.2f}", f"{now:.2f}"]
        cells.append("-" if before is None else f"**{now / before:.2f}**")
        out.append(f"| {line.name} | {' | '.join(cells)} | {'-' if line.bound_s is None else f'{line.bound_s:g}'} |")
    return out


def _measured(root: Path, line: Line, place: Path) -> float | None:
    """CPU seconds; None: this checkout does no such thing."""
    command = [sys.executable, str(_WORKER), line.kind, str(place), str(line.items)]
    environment = {**os.environ, "PYTHONPATH": str(root), "VIDBRIDGE_PROJECT": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    seconds = json.loads(done.stdout.splitlines()[-1])
    return None if seconds is None else float(seconds)
