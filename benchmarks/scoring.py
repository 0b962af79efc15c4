"""Time to score 10,000 stored predictions by rule: ``make bench-score``.

The whole command is timed, imports included, on replies made to tell readings apart; every question
has a video of its own, which is the dearest case for intervals.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.crosscheck import QUESTIONS, replies
from benchmarks.machine import keep
from stages.runtime.machine import measured

COUNT = 10_000
#: The issue's own bound, in seconds.
BOUND_S = 10.0


def write(folder: Path, benchmark: str) -> tuple[Path, Path]:
    """Write annotations of ``benchmark`` and predictions for them, of ``COUNT`` questions."""
    options = QUESTIONS[0]
    stored = list(itertools.islice(itertools.cycle(replies(options)), COUNT))
    annotations, predictions = folder / "videomme.jsonl", folder / "predictions.jsonl"
    rows = []
    for i in range(COUNT):
        if benchmark == "mvbench":
            rows.append(
                {"video": f"{i}.mp4", "question": "What is seen?", "candidates": options, "answer": options[i % 4]}
            )
            continue
        rows.append(
            {
                "videoID": f"v{i}",
                "question_id": f"videomme/{i}",
                "duration": ("short", "medium", "long")[i % 3],
                "domain": f"domain {i % 6}",
                "task_type": f"task {i % 12}",
                "question": "What is seen?",
                "options": [f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)],
                "answer": "ABCD"[i % 4],
            }
        )
    annotations.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = (json.dumps({"id": f"videomme/{i}", "reply": reply}) + "\n" for i, reply in enumerate(stored))
    predictions.write_text("".join(lines), encoding="utf-8")
    return annotations, predictions


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed/scoring.md"))
    arguments = parser.parse_args()
    lines = [
        measured("numpy", "pydantic"),
        "",
        f"`vidbridge score` on {COUNT:,} predictions, three scorings, three baselines:",
    ]
    lines += ["", "| benchmark | seconds (median) | slowest | bound |", "|---|--:|--:|--:|"]
    kept = True
    for benchmark in ("video-mme", "mvbench"):
        with tempfile.TemporaryDirectory() as folder:
            annotations, predictions = write(Path(folder), benchmark)
            command = [sys.executable, "-m", "flows.cli.main", "score", "--benchmark", benchmark]
            command += [
                "--annotations",
                str(annotations),
                "--predictions",
                str(predictions),
                "--out",
                f"{folder}/scores.json",
            ]
            times = []
            for _ in range(arguments.runs):
                started = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                times.append(time.perf_counter() - started)
        kept &= statistics.median(times) < BOUND_S
        lines.append(f"| {benchmark} | {statistics.median(times):.1f} | {max(times):.1f} | {BOUND_S:.0f} |")
    keep(lines, arguments.out)
    print("\n".join(lines))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
