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


def ask_in_own_process(
    root: Path,
    question: str,
    log: Callable[[str], None],
    *,
    timeout_s: float | None = None,
    cancelled: threading.Event | None = None,
) -> str | None:
    """Run ``question`` in a process of its own and return its answer; None if it failed. ``log``
    gets its lines, the error last.

    Raises:
        Cancelled, TimedOut: as :func:`flows.processes.stream.stream`.
    """
    # Imported here: the process itself is started by path, and finds the package only after the
    # lines at the end of this file.
    from flows.processes.environment import stage_environment
    from flows.processes.stream import stream
    from stages.runtime.plain import one_line, redacted

    answers: list[str] = []

    def take(line: str) -> None:
        if line.startswith(ANSWER):
            answers.append(line.removeprefix(ANSWER))
        else:
            log(one_line(redacted(line)))

    # Started as a file, not as a module, for the reason given at `checkouts.COMMAND`.
    command = [sys.executable, str(Path(__file__)), str(root), question]
    status = stream(command, root, stage_environment(root), take, cancelled=cancelled, timeout_s=timeout_s)
    return answers[-1] if answers and status == 0 else None


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
        print(error)
        sys.exit(1)
    # On a line of its own, whatever progress bar stands in the one before.
    print(f"\n{ANSWER}{answer}")
