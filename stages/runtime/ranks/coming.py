"""Machines that come to the meeting point of the first node (:mod:`stages.runtime.ranks.meeting`),
and train with it."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stages.runtime.ranks.nodes import BEAT_S, REFUSED, SILENT_S, Job, Nodes, NodesError, processes, scratch_folder

#: Time limit for one request, and for a file of the first node to appear on a shared folder.
_ANSWER_S, _SHARED_S = 10.0, 60.0


def come(nodes: Nodes, job: Job, environ: Mapping[str, str]) -> int:
    """Start this node's processes when the first node says so, and wait for them; they end with
    those of the others.

    Returns:
        Exit status of this node's processes.

    Raises:
        NodesError: the first node cannot be reached or refuses this one; training ended there; the
            scratch folder is not the first node's.
    """
    me: dict[str, Any] = {"node": nodes.number, "who": uuid.uuid4().hex, "setup": job.setup(nodes)}
    answer = _answer(nodes, me)
    me["token"] = answer["token"]
    _check_shared(str(answer["token"]))
    while (answer := _answer(nodes, me))["state"] == "waiting":
        time.sleep(BEAT_S / 5)
    if answer["state"] != "go":
        raise NodesError("node 0", "ended before all nodes were there", "see its output")
    heard, told = time.monotonic(), "go"
    with processes(job, int(answer["port"]), environ) as process:
        while (status := process.poll()) is None:
            try:
                told = str(ask(nodes, me)["state"])
                heard = time.monotonic()
            except OSError as error:
                if told == "go" and time.monotonic() - heard > SILENT_S:
                    raise NodesError(
                        "node 0", f"was silent for {SILENT_S:g} s: {error}", "see whether it is alive; start again"
                    ) from error
            if told == "failed":
                raise NodesError("node 0", "training ended there", "see its output")
            time.sleep(BEAT_S)
    if told == "go":
        try:
            ask(nodes, {**me, "status": status})
        except OSError as error:  # it has gone before: it knows
            print(f"node 0 has ended: {error}", flush=True)
    return status


def ask(nodes: Nodes, said: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Answer of the first node; without ``said``: what it wants done.

    Raises:
        NodesError: it refuses this node.
        OSError: it does not answer.
    """
    data = None if said is None else json.dumps(said).encode()
    # A proxy of the environment is for the world outside.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(f"http://{nodes.address}/", data), timeout=_ANSWER_S) as answered:
            answer: dict[str, Any] = json.load(answered)
    except urllib.error.HTTPError as error:
        if error.code == REFUSED:
            raise NodesError(**json.load(error)) from error
        raise
    except json.JSONDecodeError as error:
        raise OSError(f"another program answers at {nodes.address}") from error
    return answer


def _answer(nodes: Nodes, said: Mapping[str, Any]) -> dict[str, Any]:
    """Answer of the first node, as soon as it gives one.

    Raises:
        NodesError: it does not answer in the time that nodes wait for each other.
    """
    deadline = time.monotonic() + nodes.patience_s
    while True:
        try:
            return ask(nodes, said)
        except OSError as error:
            if time.monotonic() > deadline:
                raise NodesError(
                    "VIDBRIDGE_RDZV",
                    f"{nodes.address} did not answer in {nodes.patience_s:g} s: {error}",
                    "start the stage on the first node (VIDBRIDGE_NODE=0), and see that this one reaches that address"
                    " (firewall)",
                ) from error
        time.sleep(BEAT_S / 2)


def _check_shared(token: str) -> None:
    """Check that the scratch folder is the first node's.

    Raises:
        NodesError: it is another folder.
    """
    mark = scratch_folder() / f".meeting-{token}"
    deadline = time.monotonic() + _SHARED_S
    while not mark.exists():  # a network's file systems remember for a while that it did not
        if time.monotonic() > deadline:
            raise NodesError(
                "VIDBRIDGE_SCRATCH",
                f"{scratch_folder().resolve()} is not the folder of the first node, and checkpoints are read by all",
                "put the project on a folder that all nodes share, at any path",
            )
        # A listing renews what NFS knows of the folder.
        list(scratch_folder().glob(".meeting-*"))
        time.sleep(BEAT_S / 2)


def follow(nodes: Nodes, run: Callable[[Sequence[str]], int], known: Callable[[Sequence[str]], bool]) -> None:
    """Take part in the trainings of the first node, one after the other, until this is ended.

    Args:
        run: runs a stage by its verb and row; returns its exit status.
        known: whether these are a verb that trains, and a row of this project.

    Raises:
        NodesError: the first node wants something done that this project does not have.
    """
    print(f"node {nodes.number}: waits for trainings of {nodes.address}", flush=True)
    last = ""
    while True:
        try:
            job = ask(nodes)
        except OSError:  # it does not train now
            time.sleep(BEAT_S)
            continue
        if job.get("token") == last:
            time.sleep(BEAT_S)
            continue
        last, arguments = str(job.get("token")), [str(each) for each in job.get("arguments", ())]
        if job.get("module") != "stages" or not known(arguments):
            raise NodesError(
                " ".join(arguments) or "node 0", "is no training of this project", "use the first node's params.yaml"
            )
        status = run(arguments)
        print(f"node {nodes.number}: {' '.join(arguments)} ended with status {status}", flush=True)
