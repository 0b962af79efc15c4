"""Ask the DVC remote, or fetch from it, as a process that can be ended: ``remote_process.py ROOT QUESTION``; the last line is the answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(root: Path, question: str) -> str:
    """Answer a question of :func:`flows.repro.plan.make_plan` or :func:`flows.repro.reproduce.bring`."""
    from pydantic import TypeAdapter

    from flows.repro import reproduce
    from flows.repro.plan import plan_asking
    from flows.repro.steps import Plan, PlanStep

    asked = json.loads(question)
    if asked["do"] == "plan":
        made = plan_asking(root, asked["target"], frozenset(asked["lost"]))
        return TypeAdapter(Plan).dump_json(made).decode()
    steps = TypeAdapter(tuple[PlanStep, ...]).validate_python(asked["steps"])
    return json.dumps(sorted(reproduce.fetch(root, steps, lambda line: print(line, flush=True))))


if __name__ == "__main__":
    # Started by path, so that the project in the working directory cannot stand in for a package.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from flows.repro.checkouts import watch_lists
    from flows.repro.remote import ANSWER
    from stages.errors import VidbridgeError

    watch_lists()
    try:
        answer = main(Path(sys.argv[1]), sys.argv[2])
    except VidbridgeError as error:
        print(error)
        sys.exit(1)
    # On a line of its own, whatever progress bar stands in the one before.
    print(f"\n{ANSWER}{answer}")
