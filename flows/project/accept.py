"""Record a person's declaration that a change changes no result: update the lock without a run,
keep the reason.
"""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.console import show
from flows.errors import UsageError
from flows.processes.locks import only_run
from flows.repro import reproduce
from flows.repro.plan import make_plan

#: One line of JSON for each acceptance; tracked by git, so that a reader of the history finds the
#: reason beside the lock.
ACCEPTED = Path("accepted.jsonl")
_SHOWN = 3


def accept(root: Path, stage: str, why: str) -> None:
    """Record that the changes to ``stage`` do not change its result.

    Raises:
        UsageError: no reason was given, there is no such stage, or nothing changed.
    """
    _check_reason(why)
    with only_run(root):
        step = next((step for step in make_plan(root, stage).steps if step.name == stage), None)
        assert step is not None  # a plan ends with the stage it was made for
        if step.state != "will run" or step.why == ("never ran",):
            raise UsageError(
                "stage",
                f"{stage} is {'not made yet' if step.state == 'will run' else 'up to date'}",
                "there is nothing to accept",
            )
        reproduce.accept(root, stage)
        _keep(root, why, {stage: step.why})
    show.say(f"{stage} stands as it is ({'; '.join(step.why)}). Commit it with its reason: git add dvc.lock {ACCEPTED}")


def accept_all(root: Path, why: str) -> None:
    """Record that a change of code changes no result of any stage: an upgrade, files that were
    moved.

    Raises:
        UsageError: no reason was given, nothing changed, or more than code did: then nothing was
            recorded.
    """
    _check_reason(why)
    with only_run(root):
        changes = reproduce.accept_all(root)
        if not changes:
            raise UsageError("accept --all", "no stage changed", "there is nothing to accept")
        _keep(root, why, changes)
    for stage, found in changes.items():
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        show.say(f"{stage} stands as it is ({'; '.join(found[:_SHOWN])}{more})")
    show.say(f"{len(changes)} stages stand as they are. Commit them with their reason: git add dvc.lock {ACCEPTED}")


def _check_reason(why: str) -> None:
    if not why.strip():
        raise UsageError("--why", "is empty", "say why the change does not matter, a later reader has to believe it")


def _keep(root: Path, why: str, changes: Mapping[str, Sequence[str]]) -> None:
    at, who = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), getpass.getuser()
    rows = [{"at": at, "who": who, "stage": stage, "why": why, "changes": found} for stage, found in changes.items()]
    with (root / ACCEPTED).open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
