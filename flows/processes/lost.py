"""Flow runs whose process was lost (``kill -9``, power, a pod that was removed): the next run ends
them, as it does those of MLflow.

Each run of ours carries its process among its tags and a count among its labels
(:mod:`stages.tracking.runs.heartbeats`). Ending one gives back what it held on the server: its slot
of the deployment's concurrency limit.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import State, StateType
from prefect.runtime import flow_run
from prefect.states import Cancelled, Crashed

from stages.runtime.liveness import beat_every_s, lost_after_s, me, parse, process_state
from stages.tracking.runs.heartbeats import COUNT_TAG, NOTE_TAG, Sign, watched_once, watching

#: A tag of every flow run of ours.
OURS = "vidbridge"
_PROCESS = "process:"
_AT_WORK = [StateType.RUNNING, StateType.CANCELLING]
_MOST = 200
_LOGGER = logging.getLogger(__name__)


def process_tags() -> tuple[str, ...]:
    """Tags by which a flow run can be ended on the server when its process is lost."""
    who = me()
    return OURS, f"host:{who.host}", f"{_PROCESS}{who}"


def mark_this_run() -> threading.Event:
    """Tag the calling flow run, however it was started, and raise its count until it has ended or
    the event is set. Ends the runs known to be lost: a run that has nothing to do gets no further.
    """
    stop = threading.Event()
    if flow_run.id is None:
        return stop  # called in Python, as a plain function
    run_id = UUID(str(flow_run.id))
    with get_client(sync_client=True) as client:
        tags = set(client.read_flow_run(run_id).tags)
        client.update_flow_run(
            run_id, tags={tag for tag in tags if not tag.startswith((_PROCESS, "host:"))} | set(process_tags())
        )
        watched_once(_OthersRuns(client))
    # The thread has to find the same server.
    context, every_s = contextvars.copy_context(), beat_every_s()
    threading.Thread(
        target=lambda: context.run(_beat, run_id, every_s, stop), name="prefect-heartbeat", daemon=True
    ).start()
    return stop


def end_lost_flow_runs() -> None:
    """End the runs of this machine's lost processes, on the server of the environment. Call it
    before a worker starts, so that the slots they held are free for its first run.
    """
    with get_client(sync_client=True) as client:
        watched_once(_OthersRuns(client))


def _beat(run_id: UUID, every_s: float, stop: threading.Event) -> None:
    count = 0
    with get_client(sync_client=True) as client:
        while not stop.wait(every_s):
            count += 1
            try:
                state = client.read_flow_run(run_id).state
                if state is not None and state.is_final():
                    return
                client.update_flow_run_labels(run_id, {COUNT_TAG: count})
            except Exception as error:  # the server may be away for a while
                _LOGGER.debug("no sign of life: %s", error)


class _OthersRuns:
    """Our active runs, in the form that :func:`stages.tracking.runs.heartbeats.watching` takes."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self._client = client

    def signs(self) -> dict[str, Sign]:
        """Runs whose process cannot be looked up; ends those of the others whose process has
        ended."""
        wanted = FlowRunFilter(
            tags=FlowRunFilterTags(all_=[OURS]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_AT_WORK)),
        )
        found = {}
        for run in self._client.read_flow_runs(flow_run_filter=wanted, limit=_MOST):
            process = next((parse(tag.removeprefix(_PROCESS)) for tag in run.tags if tag.startswith(_PROCESS)), None)
            seen = process_state(process) if process is not None else None
            if seen == "gone":
                self._end(run.id, "its process was gone when another run looked")
            elif seen == "elsewhere":
                found[str(run.id)] = Sign(str(run.labels.get(COUNT_TAG, "")), str(run.labels.get(NOTE_TAG, "")))
        return found

    def note(self, run: str, text: str) -> None:
        self._client.update_flow_run_labels(UUID(run), {NOTE_TAG: text})

    def end(self, run: str) -> None:
        self._end(UUID(run), f"it gave no sign of life for {lost_after_s():g} s while the server could be reached")

    def _end(self, run_id: UUID, why: str) -> None:
        was = self._client.read_flow_run(run_id).state
        if was is None or was.type not in _AT_WORK:
            return  # it has ended by itself since the runs were listed
        # Its active stages first: nothing looks for them once the run has ended.
        this_run = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
        for stage in self._client.read_task_runs(flow_run_filter=this_run, limit=_MOST):
            if stage.state is not None and not stage.state.is_final():
                self._client.set_task_run_state(stage.id, Crashed(message=why), force=True)
        ended: State[None] = Cancelled(message=why) if was.is_cancelling() else Crashed(message=why)
        self._client.set_flow_run_state(run_id, ended, force=True)


@contextmanager
def at_work() -> Iterator[None]:
    """Mark this flow run for this block, and end runs that lost processes left active on the
    server: those of this machine at once, others when their sign of life has not changed for long
    enough.
    """
    stop = mark_this_run()
    try:
        with get_client(sync_client=True) as client, watching(_OthersRuns(client)):
            yield
    finally:
        stop.set()
