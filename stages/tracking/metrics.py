"""Metrics on their way to MLflow: collected, sent in batches by a thread, kept on disk when the store has gone away."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stages.tracking.uri import STATE, shown, tracking_uri

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

#: A person who watches sees a point after so many seconds at most; a single call costs 0.08 s over HTTP, a batch hardly more.
FLUSH_S = 2.0
FLUSH_POINTS = 500
#: MLflow takes no more in one batch.
BATCH_POINTS = 1000
#: Points that could not be sent, a file for each run; `register` sends them.
UNSENT = STATE / "unsent"

#: One metric: name, value, milliseconds since the epoch, step.
Point = tuple[str, float, int, int]


class MetricBuffer:
    """Points of one run. ``add`` never waits for the network; ``close`` sends the rest, or writes it to disk and says so.

    A store that dies in the middle must not cost the training: the points wait and are tried again.
    """

    def __init__(self, client: MlflowClient, run_id: str, root: Path) -> None:
        self._client, self._run_id, self._root = client, run_id, root
        self._points: list[Point] = []
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._complained = False
        self._thread = threading.Thread(target=self._pump, name="mlflow-metrics", daemon=True)
        self._thread.start()

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        now_ms = time.time_ns() // 1_000_000
        with self._lock:
            self._points += [(name, float(value), now_ms, step) for name, value in metrics.items()]
            full = len(self._points) >= FLUSH_POINTS
        if full:
            self._wake.set()

    def flush(self) -> bool:
        """Send what is there; True when nothing is left."""
        from mlflow.exceptions import MlflowException

        with self._sending:
            while True:
                with self._lock:
                    batch = self._points[:BATCH_POINTS]
                if not batch:
                    return True
                try:
                    send(self._client, self._run_id, batch)
                except MlflowException as error:
                    self._complain(error)
                    return False
                with self._lock:
                    del self._points[: len(batch)]

    def close(self) -> None:
        self._closed = True
        self._wake.set()
        self._thread.join()
        if self.flush():
            return
        path = self._root / UNSENT / f"{self._run_id}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(point) + "\n" for point in self._points)
        print(
            f"tracking: {len(self._points)} metric points of run {self._run_id} could not be sent; they wait in {path},"
            " and `vidbridge register` sends them when the store answers",
            file=sys.stderr,
        )

    def _pump(self) -> None:
        while not self._closed:
            self._wake.wait(FLUSH_S)
            self._wake.clear()
            if not self._closed:
                self.flush()

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            where = shown(tracking_uri(self._root))
            print(
                f"tracking: {where}: metrics cannot be sent now ({error}); the stage goes on, they are kept and tried again",
                file=sys.stderr,
            )


def send(client: MlflowClient, run_id: str, points: list[Point]) -> None:
    """One batch of at most :data:`BATCH_POINTS` points; sending the same points twice changes nothing."""
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(name, value, at_ms, step) for name, value, at_ms, step in points], synchronous=True)


def send_unsent(client: MlflowClient, root: Path) -> int:
    """Send the points that earlier runs had to leave on disk; returns how many."""
    count = 0
    for path in sorted((root / UNSENT).glob("*.jsonl")):
        points: list[Point] = [tuple(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        for start in range(0, len(points), BATCH_POINTS):
            send(client, path.stem, points[start : start + BATCH_POINTS])
        path.unlink()
        count += len(points)
    return count
