"""Training and generation on a GPU, at the sizes of the published models: ``make bench-gpu``.

One command for a lent machine: it needs torch and transformers, no network, no published weights
and no video reader. Parts that need more (PEFT, TRL, DeepSpeed …) are left out where that is
missing, and the page says which. The parts are taken in the order of their value for so many
seconds; what has been measured is on the page at any time, whatever ends the run.

``--dry`` runs the same code at tiny size, on a CPU too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.gpu.page import header, page
from benchmarks.gpu.parts import BY_NAME, PARTS
from benchmarks.gpu.schedule import Outcome, Workers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, help="budget of the whole run (default: 360; of a dry run: 3600)")
    parser.add_argument("--dry", action="store_true", help="the same code at tiny size, to see that it runs")
    parser.add_argument("--only", choices=BY_NAME, action="append", metavar="PART", help="these parts only (--list)")
    parser.add_argument("--list", action="store_true", help="show the parts with their foreseen seconds, and end")
    parser.add_argument("--out", type=Path, default=Path(".vidbridge/gpu"), help="folder of page, results and log")
    arguments = parser.parse_args()
    if arguments.list:
        for part in PARTS:
            print(
                f"{part.estimate_s:4} s  {part.name}" + (f"  (lacks {', '.join(part.lacks())})" if part.lacks() else "")
            )
        return 0
    end = time.monotonic() + (arguments.seconds or (3600 if arguments.dry else 360))
    parts = [BY_NAME[name] for name in arguments.only] if arguments.only else list(PARTS)
    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    text, results, log = folder / "gpu.md", folder / "results.jsonl", folder / "log.txt"
    for file in (results, log):
        file.write_text("", encoding="utf-8")
    found: list[Outcome] = []
    with Workers(log, dry=arguments.dry) as workers:
        machine = workers.machine()
        if machine["card"] is None and not arguments.dry:
            print("error: torch sees no GPU here; run this where there is one, or add --dry", file=sys.stderr)
            return 1
        head = header(machine, parts, dry=arguments.dry)
        for outcome in workers.outcomes(parts, end):
            found.append(outcome)
            print(f"{outcome.part.name}: {outcome.why or f'{outcome.seconds:.0f} s'}", file=sys.stderr, flush=True)
            line = {"part": outcome.part.name, "rows": outcome.rows, "why": outcome.why, "seconds": outcome.seconds}
            with results.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")
            text.write_text(page(head, found, parts[len(found) :]), encoding="utf-8")
    print(text.read_text(encoding="utf-8"))
    print(f"{text}; put it into benchmarks/results/gpu.md under a heading with the date and the card.", file=sys.stderr)
    return 1 if any(outcome.failed for outcome in found) else 0


if __name__ == "__main__":
    sys.exit(main())
