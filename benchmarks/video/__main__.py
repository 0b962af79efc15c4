"""Cost of reading, editing and synthesis, as ratios within one run: ``make bench-video``.

The videos are the clip under ``tests/data/clips``, repeated and encoded again, since synthetic
pictures decode faster than real ones. Every reader is asked for the same 16 frames, in turn,
several times; the median of its CPU seconds counts, its threads' included. A reader that returns
another frame than the file's decode holds at that place is wrong on the file, and no yardstick.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.machine import keep
from benchmarks.video.files import encode
from benchmarks.video.look import look
from benchmarks.video.readers import flat_reading, gate, reading
from benchmarks.video.samples import edits, kept
from benchmarks.video.synthesis import synthesis
from benchmarks.video.workers import two_workers
from stages.runtime.machine import measured


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.video", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="times each reader is asked (default: %(default)s)")
    parser.add_argument(
        "--clips", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="sizes of the synthesised manifests"
    )
    parser.add_argument("--reads", type=int, default=10_000, help="reads of the memory check (default: %(default)s)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=["reading", "gate", "edits", "kept", "workers", "look", "memory", "synthesis"],
        help="these sections only",
    )
    parser.add_argument(
        "--old", type=Path, help="an earlier checkout, whose ingest is measured in turn with this one's (section look)"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed/video.md"))
    arguments = parser.parse_args()
    packages = ["av", "decord", "numpy", "pydantic"] + (["torchcodec"] if find_spec("torchcodec") else [])
    out = [measured(*packages)]

    def section(title: str, lines: Sequence[str]) -> None:
        print("\n".join((f"## {title}", "", *lines, "")), flush=True)
        out.extend(("", f"## {title}", "", *lines))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        short = ("-c:v", "libx264", "-g", "12")
        long = ("-c:v", "libx264", "-g", "250")
        files = [
            encode(folder, "10 s, GOP 12.mp4", 10, *short),
            encode(folder, "10 s, GOP 250.mp4", 10, *long),
            encode(folder, "60 s, GOP 12.mp4", 60, *short),
            encode(folder, "60 s, GOP 250.mp4", 60, *long),
        ]
        opened = ("-c:v", "libx264", "-x264-params", "open-gop=1:keyint=24:min-keyint=24:bframes=3")
        odd = [
            encode(folder, "10 s, open GOP.mp4", 10, *opened),
            encode(folder, "10 s, HEVC.mp4", 10, "-c:v", "libx265", "-g", "24", "-x265-params", "log-level=none"),
            encode(folder, "10 s, MPEG-TS.ts", 10, *short),
        ]
        small = encode(folder, "small.mp4", 5, "-c:v", "libx264", "-vf", "scale=256:144")
        sections: dict[str, tuple[str, Callable[[], list[str]]]] = {
            "reading": (
                "Reading 16 frames, CPU relative to a plain decode of the file",
                lambda: reading([*files, *odd], arguments.rounds),
            ),
            "gate": ("The gate", lambda: gate([*files, *odd], arguments.rounds)),
            "edits": ("Edit lists", lambda: edits(files[0], files[1], arguments.rounds)),
            "kept": ("Frames kept on disk (read from the page cache)", lambda: kept(folder, files, arguments.rounds)),
            "workers": ("Two workers (ingest: probe, decode, hash)", lambda: two_workers(folder, files[0], 24)),
            "look": (
                "Looking at a source",
                lambda: look(folder, files[0], arguments.old and arguments.old.resolve(), arguments.rounds),
            ),
            "memory": ("Memory of readers", lambda: [flat_reading(small, arguments.reads)]),
            "synthesis": ("Synthesis of edit lists", lambda: synthesis(arguments.clips, 1)),
        }
        for key, (title, measure) in sections.items():
            if key in (arguments.only or sections):
                section(title, measure())
    keep(out, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
