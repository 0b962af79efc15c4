"""A person's word that a change changes no result: the lock is brought up to date without a run, the reason kept beside it."""

from __future__ import annotations

import getpass
import json
import time
from pathlib import Path

from flows.console import show
from flows.errors import UsageError
from flows.processes.locks import only_run
from flows.repro import reproduce

#: One line of JSON for each acceptance; tracked by git, so that a reader of the history finds the reason beside the lock.
ACCEPTED = Path("accepted.jsonl")


def accept(root: Path, stage: str, why: str) -> None:
    """Record that what changed about ``stage`` does not change its result.

    Raises:
        UsageError: no reason was given, there is no such stage, or nothing changed.
    """
    if not why.strip():
        raise UsageError("--why: is empty; say why the change does not matter, a later reader has to believe it")
    with only_run(root):
        step = next((step for step in reproduce.plan(root, stage).steps if step.name == stage), None)
        assert step is not None  # a plan ends with the stage it was made for
        if step.state != "will run" or step.why == ("never ran",):
            raise UsageError(
                f"stage: {stage} is {'not made yet' if step.state == 'will run' else 'up to date'}; there is nothing to accept"
            )
        reproduce.accept(root, stage)
        row = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "who": getpass.getuser(),
            "stage": stage,
            "why": why,
            "changes": step.why,
        }
        with (root / ACCEPTED).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    show.say(f"{stage} stands as it is ({'; '.join(step.why)}). Commit it with its reason: git add dvc.lock {ACCEPTED}")
