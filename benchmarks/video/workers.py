"""Ingest with one worker and with two."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.video.files import File
from stages.params import load_params

INGEST = """
import sys
from pathlib import Path
from stages.ingest.examine import examine_source
from stages.params import IngestParams
if __name__ == "__main__":
    settings = IngestParams.model_validate_json(Path(sys.argv[1]).read_text())
    clips, rejects, *_ = examine_source(settings, 7)
    assert not rejects, rejects[:3]
    print(len(clips))
"""


def two_workers(folder: Path, file: File, copies: int) -> list[str]:
    """Examine so many different files with one worker and with two."""
    source = folder / "many"
    source.mkdir()
    content = file.path.read_bytes()
    for number in range(copies):
        # A trailing box that readers skip: other bytes, the same video.
        (source / f"{number:03d}.mp4").write_bytes(
            content + (12).to_bytes(4, "big") + b"free" + number.to_bytes(4, "big")
        )
    (source / "annotations.jsonl").write_text(
        "".join(json.dumps({"video": f"{n:03d}.mp4"}) + "\n" for n in range(copies))
    )
    ingest = load_params().ingest.model_copy(update={"source": str(source)})
    (folder / "ingest.json").write_text(ingest.model_dump_json())
    (folder / "ingest.py").write_text(INGEST)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(3):
        for workers, taken in seconds.items():
            environment = {**os.environ, "VIDBRIDGE_WORKERS": str(workers), "PYTHONPATH": str(Path.cwd())}
            started = time.perf_counter()
            command = [sys.executable, str(folder / "ingest.py"), str(folder / "ingest.json")]
            subprocess.run(command, env=environment, capture_output=True, check=True)
            taken.append(time.perf_counter() - started)
    one, two = (statistics.median(taken) for taken in seconds.values())
    return [
        "| workers | seconds | clips a second | speed-up |",
        "|---|---|---|---|",
        f"| 1 | {one:.1f} | {copies / one:.1f} | 1.00 |",
        f"| 2 | {two:.1f} | {copies / two:.1f} | **{one / two:.2f}** |",
    ]
