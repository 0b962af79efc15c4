"""Query the DVC remote, or fetch from it, in a process that can be ended: ``remote_process.py ROOT
QUESTION``.

Both ends of that process: :func:`ask_in_own_process` starts it and takes its answer, :func:`main`
is what it runs.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

#: Begins the line that carries the answer; every other line is a report of progress or an error.
ANSWER = "vidbridge-answer: "
#: Begins the line that carries field, problem and remedy of the error that ended the process.
FAILURE = "vidbridge-failure: "


def ask_in_own_process(
    root: Path,
    question: str,
    log: Callable[[str], None],
    *,
    timeout_s: float | None = None,
    cancelled: threading.Event | None = None,
) -> str:
    """Run ``question`` in a process of its own and return its answer. ``log`` gets its lines.

    Raises:
        DvcError: the process failed.
        Cancelled, TimedOut: as :func:`flows.processes.stream.stream`.
    """
    # Imported here: the process itself is started by path, and finds the package only after the
    # lines at the end of this file.
    from flows.errors import DvcError
    from flows.processes.environment import stage_environment
    from flows.processes.stream import stream
    from stages.runtime.plain import one_line, redacted

    answers: list[str] = []
    failures: list[DvcError] = []
    last = ""

    def take(line: str) -> None:
        nonlocal last
        if line.startswith(ANSWER):
            answers.append(line.removeprefix(ANSWER))
        elif line.startswith(FAILURE):
            field, problem, remedy = (one_line(redacted(part)) for part in json.loads(line.removeprefix(FAILURE)))
            failures.append(DvcError(field, problem, remedy))
        else:
            last = one_line(redacted(line)) or last
            log(last)

    # Started as a file, not as a module, for the reason given at `checkouts.COMMAND`.
    command = [sys.executable, str(Path(__file__)), str(root), question]
    status = stream(command, root, stage_environment(root), take, cancelled=cancelled, timeout_s=timeout_s)
    if answers and status == 0:
        return answers[-1]
    if failures:
        raise failures[-1]
    raise DvcError(
        "DVC remote", last or f"the process that queries it ended with status {status}", "see its lines above"
    )


def main(root: Path, question: str) -> str:
    """Answer a question of :func:`flows.repro.plan.make_plan` or
    :func:`flows.repro.reproduce.bring`.
    """
    from pydantic import TypeAdapter

    from flows.repro import reproduce
    from flows.repro.plan import plan_with_answers
    from flows.repro.steps import Plan, PlanStep

    request = json.loads(question)
    if request["do"] == "plan":
        plan = plan_with_answers(root, request["target"], frozenset(request["lost"]))
        return TypeAdapter(Plan).dump_json(plan).decode()
    steps = TypeAdapter(tuple[PlanStep, ...]).validate_python(request["steps"])
    return json.dumps(sorted(reproduce.fetch(root, steps, lambda line: print(line, flush=True))))


if __name__ == "__main__":
    # Started by path, so that the project in the working directory cannot stand in for a package.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from flows.content.checkouts import watch_lists
    from stages.errors import VidbridgeError

    watch_lists()
    try:
        answer = main(Path(sys.argv[1]), sys.argv[2])
    except VidbridgeError as error:
        print(f"\n{FAILURE}{json.dumps([error.field, error.problem, error.remedy])}")
        sys.exit(1)
    # On a line of its own, whatever progress bar stands in the one before.
    print(f"\n{ANSWER}{answer}")
