"""Synthesis of edit lists from manifests of many clips."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from stages.domain.core.records import Clip, Event, Question, Span, Subject
from stages.lib.rows.jsonl import write_rows
from stages.params import load_params


def write_manifest(path: Path, count: int) -> None:
    """Write rows as ingest does, of ``count`` clips of a minute with six events each; no video
    belongs to them.
    """

    def clip(number: int) -> Clip:
        events = tuple(
            Event(span=Span(start=n * 300, stop=n * 300 + 200), caption=f"someone does thing {number * 7 % 997} of {n}")
            for n in range(6)
        )
        return Clip(
            clip_id=f"clip-{number:08d}",
            source_id=f"source-{number // 3:08d}",
            path=f"videos/{number:08d}.mp4",
            sha256=f"{number:064x}",
            split="test" if number % 10 == 0 else "train",
            frames=1800,
            rate=Fraction(30),
            width=1280,
            height=720,
            codec="h264",
            label=f"class {number % 400}",
            caption="Someone does one thing after the other in a kitchen, and then cleans the table.",
            events=events,
            subjects=(Subject(name="person", attributes=(f"look {number % 50}",), actions=("cooks",)),),
            questions=(Question(question="What is made?", options=("Tea", "Soup", "Bread"), answer="B"),),
        )

    write_rows(path, (clip(number) for number in range(count)))


SYNTHESIS = """
import json, resource, sys, time
from pathlib import Path
from stages.params import SynthesizeParams
from stages.synthesize.shards import synthesise_manifest
folder = Path(sys.argv[1])
settings = SynthesizeParams.model_validate_json((folder / "settings.json").read_text())
(folder / "scratch").mkdir(exist_ok=True)
if __name__ == "__main__":
    started = time.perf_counter()
    made = synthesise_manifest(folder / "manifest.jsonl", settings, 7, folder / "scratch", folder / "samples")
    seconds = time.perf_counter() - started
    # Not ru_maxrss: it starts with what the process held that this one was forked from.
    status = Path("/proc/self/status").read_text().splitlines()
    own = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    peaks = [own / 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]
    samples = sum(sum(counts.values()) for counts in made.samples.values())
    print(json.dumps({"samples": samples, "seconds": seconds, "peaks": peaks}))
"""


def synthesis(counts: Sequence[int], workers: int) -> list[str]:
    lines = [
        f"| clips | samples | samples a second and core ({workers} worker) | peak MB, parent | peak MB, worker |",
        "|---|---|---|---|---|",
    ]
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_manifest(folder / "manifest.jsonl", count)
            (folder / "settings.json").write_text(
                load_params("infra/recipes/vidbridge-r1.yaml").synthesize.model_dump_json()
            )
            script = folder / "run.py"
            script.write_text(SYNTHESIS)
            environment = {**os.environ, "VIDBRIDGE_WORKERS": str(workers), "PYTHONPATH": str(Path.cwd())}
            done = subprocess.run(
                [sys.executable, str(script), name], env=environment, capture_output=True, text=True, check=True
            )
            found = json.loads(done.stdout.strip().splitlines()[-1])
            each = found["samples"] / found["seconds"] / workers
            lines.append(
                f"| {count:,} | {found['samples']:,} | {each:,.0f} | {found['peaks'][0]:.0f} | {found['peaks'][1]:.0f}"
                " |"
            )
    return lines
