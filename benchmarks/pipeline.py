"""Cost of the pipeline's own machinery, on a project that has been run: ``make bench``.

Commands are timed as whole processes, several times, and set against ``import mlflow`` of the same
minute, since machines differ and drift. The stages' own costs are read from MLflow.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import keep
from stages.runtime.machine import measured
from stages.tracking.runs.history import latest_costs
from stages.tracking.session import Session

BIN = Path(sys.executable).parent


def seconds(command: Sequence[str], runs: int, **environment: str) -> float:
    """Median wall seconds of a command that must succeed."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
        times.append(time.perf_counter() - started)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return statistics.median(times)


def registration(root: Path) -> tuple[int, float]:
    """Versions of this project, and seconds for each when all are registered into an empty store,
    pushing included.

    As at the end of a run: DVC and MLflow are imported already, and the store has its tables.
    """
    code = f"""
import time
from pathlib import Path
from stages.tracking.lineage.opening import open_content
from stages.tracking.registry.register import register
from stages.tracking.session import Session
from stages.tracking.runs.store import open_client
root = Path({str(root)!r})
open_client(root)
with open_content(root):
    pass
started = time.perf_counter()
report = register(Session(root))
print(len(report.created), time.perf_counter() - started)
"""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True, check=True
        )
    count, total = done.stdout.strip().splitlines()[-1].split()
    return int(count), float(total) / max(int(count), 1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="times each command is run (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed/pipeline.md"))
    arguments = parser.parse_args()
    root = Path.cwd()
    costs = latest_costs(Session(root).client, root)
    if "summary" not in costs:
        print("error: no finished run here; type: vidbridge run", file=sys.stderr)
        return 1
    vidbridge = str(BIN / "vidbridge")
    start = seconds([sys.executable, "-c", "pass"], arguments.runs)
    mlflow = seconds([sys.executable, "-W", "ignore", "-c", "import mlflow"], arguments.runs)
    rows = [
        ("python -c pass", start),
        ("import mlflow", mlflow),
        ("vidbridge --help", seconds([vidbridge, "--help"], arguments.runs)),
        ("vidbridge run, nothing to do", seconds([vidbridge, "run"], arguments.runs)),
    ]
    versions, each = registration(root)
    lines = [
        measured("torch", "dvc", "prefect", "mlflow"),
        "",
        f"| command (median of {arguments.runs}) | seconds | ratio to `import mlflow` |",
        "|---|---|---|",
        *(f"| {name} | {value:.2f} | {value / mlflow:.2f} |" for name, value in rows),
        f"| registration, each of {versions} versions into an empty store | {each:.3f} | {each / mlflow:.3f} |",
        "",
        "| stage | seconds | CPU seconds | peak GB |",
        "|---|---|---|---|",
        *(
            f"| {name} | {cost.wall_s:.0f} | {cost.cpu_s:.0f} | {cost.peak_gb:.2f} |"
            for name, cost in reversed(costs.items())
        ),
    ]
    keep(lines, arguments.out)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
