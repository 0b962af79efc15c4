"""Outgoing entries of a run: collected, sent to MLflow in batches by a thread, saved to disk when
the store is away."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.runtime.liveness import beat_every_s, lost_after_s
from stages.runtime.paths import UNSENT
from stages.runtime.plain import one_line, redacted
from stages.tracking.lineage.uri import TrackingError, display_uri, tracking_uri
from stages.tracking.runs.heartbeats import COUNT_TAG, LOST_TAG
from stages.tracking.runs.store import is_away, is_denied

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

#: A point appears in MLflow after this many seconds at most; a single call costs 0.08 s over HTTP,
#: a batch hardly more.
FLUSH_S = 2.0
FLUSH_ENTRIES = 500
#: MLflow takes 1000 metrics and 100 tags in one batch.
BATCH_METRICS = 1000
BATCH_TAGS = 100
#: Codes of MLflow's errors about a run that does not exist, or was deleted.
_NO_RUN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")

#: ``["metric", name, value, at_ms, step]``, ``["tag", name, value]``, ``["end", status, at_ms]`` or
#: ``["text", file, content]``.
Entry = Sequence[Any]


class ArtifactStoreError(TrackingError):
    """The store of a run's files, which may differ from that of its metrics, refuses one."""


class Outbox:
    """Entries of one run. Adding never waits for the network; ``close`` sends the rest, or writes
    it to disk and reports that.

    A store that dies in the middle must not cost the training: the entries wait and are tried
    again.
    """

    def __init__(self, client: MlflowClient, run_id: str, root: Path) -> None:
        self._client, self._run_id, self._root = client, run_id, root
        self._entries: list[Entry] = []
        #: Files, which may go elsewhere and be refused there: no metric waits behind one.
        self._texts: list[Entry] = []
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._complained = False
        self._thread = threading.Thread(target=self._pump, name="mlflow-outbox", daemon=True)
        self._thread.start()
        self._ending = threading.Event()
        self._beaten_at = time.monotonic()
        # A thread of its own: a file that takes minutes to store must not delay the sign of life.
        self._heart = threading.Thread(target=self._beat, args=(beat_every_s(),), name="mlflow-heartbeat", daemon=True)
        self._heart.start()

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        at_ms = _now_ms()
        self._add([("metric", name, float(value), at_ms, step) for name, value in metrics.items()])

    def tags(self, tags: Mapping[str, str]) -> None:
        """Send tags at once, with all waiting entries."""
        self._add([("tag", name, value) for name, value in tags.items()])
        self._wake.set()

    def text(self, file: str, content: str) -> None:
        """Add a text file to the run's artefacts, sent behind all waiting metrics and tags."""
        with self._lock:
            self._texts.append(("text", file, content))
        self._wake.set()

    def flush(self) -> bool:
        """Send all entries. Returns True if none is left."""
        with self._sending:
            return all([self._sent(self._entries), self._sent(self._texts)])

    def _sent(self, entries: list[Entry]) -> bool:
        from mlflow.exceptions import MlflowException

        while True:
            with self._lock:
                batch = _batch(entries)
            if not batch:
                return True
            try:
                _send(self._client, self._run_id, batch)
            except (MlflowException, ArtifactStoreError) as error:
                self._complain(error)
                return False
            with self._lock:
                del entries[: len(batch)]

    def close(self, status: str) -> None:
        """End the run with ``status`` once everything else has been sent."""
        self._closed = True
        self._wake.set()
        self._ending.set()
        self._thread.join()
        # No longer: it may be waiting for a store that is away.
        self._heart.join(FLUSH_S)
        self._add([("end", status, _now_ms())])
        if self.flush():
            if time.monotonic() - self._beaten_at > lost_after_s() / 2:
                _undo_lost(self._client, self._run_id, None)
            return
        left = [*self._entries, *self._texts]
        path = self._root / UNSENT / f"{self._run_id}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in left)
        print(
            f"tracking: {len(left)} entries of run {self._run_id} could not be sent; they wait in {path},"
            " and `vidbridge register` sends them when the store answers",
            file=sys.stderr,
        )

    def _add(self, entries: Sequence[Entry]) -> None:
        with self._lock:
            self._entries += entries
            full = len(self._entries) >= FLUSH_ENTRIES
        if full:
            self._wake.set()

    def _pump(self) -> None:
        while not self._closed:
            self._wake.wait(FLUSH_S)
            self._wake.clear()
            if not self._closed and not self.flush():
                # A full box wakes the thread again and again: do not hammer a store that is down.
                time.sleep(FLUSH_S)

    def _beat(self, every_s: float) -> None:
        from mlflow.exceptions import MlflowException

        count = 0
        while not self._ending.wait(every_s):
            count += 1
            silent_s = time.monotonic() - self._beaten_at
            try:
                self._client.set_tag(self._run_id, COUNT_TAG, str(count))
                if silent_s > lost_after_s() / 2 and not self._ending.is_set():
                    # The store, or the way to it, was away, or this process was held up: another
                    # process may have taken the run for lost.
                    _undo_lost(self._client, self._run_id, "RUNNING")
            except MlflowException:
                continue  # the waiting entries report it
            self._beaten_at = time.monotonic()

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            where = display_uri(tracking_uri(self._root))
            print(
                f"tracking: {where} does not take what this run reports ({error}); the stage goes on, they are kept and"
                " tried again",
                file=sys.stderr,
            )


def send_unsent(client: MlflowClient, root: Path) -> int:
    """Send the entries that earlier runs left on disk. Returns their number.

    Each run's file is handled by itself. A file that can never be sent (its run was deleted or is
    another server's, a line is broken) is renamed to ``*.refused``, and that is reported; one that
    this account may not send stays.

    Raises:
        MlflowException: the store is away.
        ArtifactStoreError: it refuses a file; all else was sent.
    """
    from mlflow.exceptions import MlflowException

    count = 0
    failed: ArtifactStoreError | None = None
    for path in sorted((root / UNSENT).glob("*.jsonl")):
        try:
            entries = _entries(path)
            _send_all(client, path.stem, entries)
        except (MlflowException, ArtifactStoreError, ValueError) as error:
            # Files of a run that does not exist cannot be stored either.
            cause = error.__cause__ if isinstance(error, ArtifactStoreError) else error
            code = getattr(cause, "error_code", None)
            if isinstance(error, ArtifactStoreError) and code not in _NO_RUN:
                failed = failed or error
            elif isinstance(cause, Exception) and is_away(cause):
                raise
            elif isinstance(cause, Exception) and is_denied(cause):
                _report(
                    f"{path}: this account may not send it ({error}); register as the one whose run it is, or delete"
                    " the file"
                )
            else:
                aside = path.with_name(path.name + ".refused")
                path.replace(aside)
                _report(
                    f"{path.name} can never be sent ({error}); it was put aside: {aside}; delete it when you do not"
                    " need it"
                )
            continue
        count += len(entries)
        path.unlink()
    if failed is not None:
        raise failed
    return count


def _report(message: str) -> None:
    print(f"tracking: {redacted(one_line(message))}", file=sys.stderr)


#: Kind of an entry to the types of its fields.
_KINDS: Mapping[str, tuple[Any, ...]] = {
    "metric": (str, int | float, int, int),
    "tag": (str, str),
    "end": (str, int),
    "text": (str, str),
}


def _entries(path: Path) -> list[Entry]:
    """Read the entries of a file.

    Raises:
        ValueError: a line is not an entry.
    """
    entries: list[Entry] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            kind, *values = json.loads(line)
            whole = all(
                isinstance(value, kind_of_value) for value, kind_of_value in zip(values, _KINDS[kind], strict=True)
            )
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"line {number} is broken: {error}") from error
        if not whole:
            raise ValueError(f"line {number} is broken: no {kind}")
        entries.append((kind, *values))
    return entries


def _send_all(client: MlflowClient, run_id: str, entries: Sequence[Entry]) -> None:
    while batch := _batch(entries):
        _send(client, run_id, batch)
        entries = entries[len(batch) :]
    _undo_lost(client, run_id, None)


def _undo_lost(client: MlflowClient, run_id: str, status: str | None) -> None:
    """Undo the ending of a run that another process took for lost. ``status``: the one it has, None
    if it ended by itself."""
    if LOST_TAG in client.get_run(run_id).data.tags:
        if status is not None:
            client.update_run(run_id, status=status)
        client.delete_tag(run_id, LOST_TAG)


def _batch(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Take as many entries from the front as one call allows; the end of a run is a call of its
    own, and so is a file."""
    alone = ("end", "text")
    if not entries or entries[0][0] in alone:
        return entries[:1]
    tags = 0
    for index, entry in enumerate(entries):
        tags += entry[0] == "tag"
        if entry[0] in alone or index == BATCH_METRICS or tags > BATCH_TAGS:
            return entries[:index]
    return entries[:]


def _send(client: MlflowClient, run_id: str, batch: Sequence[Entry]) -> None:
    """Send one batch in one call; sending the same entries twice changes nothing.

    Raises:
        MlflowException: the store refuses it.
        ArtifactStoreError: it is a file, and the store of files refuses it.
    """
    from mlflow.entities import Metric, RunTag

    if batch[0][0] == "end":
        client.set_terminated(run_id, status=batch[0][1], end_time=batch[0][2])
        return
    if batch[0][0] == "text":
        _, file, content = batch[0]
        try:
            client.log_text(run_id, content, file)
        except Exception as error:  # the type depends on the store: a folder, a server, S3, …
            raise ArtifactStoreError(
                f"artifact {file}", f"{type(error).__name__}: {error}", "see that the store of artifacts can be written"
            ) from error
        return
    client.log_batch(
        run_id,
        metrics=[Metric(*entry[1:]) for entry in batch if entry[0] == "metric"],
        tags=[RunTag(*entry[1:]) for entry in batch if entry[0] == "tag"],
        synchronous=True,
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
