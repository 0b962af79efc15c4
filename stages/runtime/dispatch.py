"""Run one verb of ``python -m stages`` in this process: our own errors end it with one clear line, a defect with its traceback."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from stages.errors import VidbridgeError, remedy_of
from stages.runtime.plain import fit, guard_logs
from stages.runtime.verbs import VERBS

#: Says what errors of servers, stores and remotes mean.
FOREIGN = "stages.tracking.runs.foreign"


def run(arguments: Sequence[str]) -> NoReturn:
    """Run a verb and exit with its status; wrong usage exits with status 2 and lists the verbs."""
    if not arguments or arguments[0] not in VERBS:
        given = " ".join(arguments) or "nothing"
        print(f"usage: python -m stages VERB [ROW]\nerror: VERB is {given}; there are {', '.join(VERBS)}", file=sys.stderr)
        sys.exit(2)
    verb, *rest = arguments
    run_verb(importlib.import_module(VERBS[verb].module).main, *rest)


def run_verb(main: Callable[..., int | None], *arguments: str) -> NoReturn:
    """Call ``main`` and exit with its status: 0 done, 1 failed with a message, 2 used wrongly.

    An exception that this project defines says field, value and remedy, so its message is all a person needs. Any other is a
    defect and keeps its traceback.
    """
    guard_logs()
    try:
        status = main(*arguments)
    except VidbridgeError as error:
        print(f"error: {fit(error)}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if (remedy := remedy_of(error)) is None:
            raise
        print(f"error: {fit(remedy)}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        # By name, as the verbs are: what is run lies above this module.
        if (said := importlib.import_module(FOREIGN).sentence_of(error)) is None:
            raise
        print(f"error: {fit(said)}", file=sys.stderr)
        sys.exit(1)
    sys.exit(status or 0)


def one_row(verb: str, arguments: list[str], known: list[str]) -> str:
    """The row that a verb was asked for; wrong usage ends the process with status 2 and says what there is."""
    if len(arguments) != 1 or arguments[0] not in known:
        given = " ".join(arguments) or "nothing"
        print(
            f"usage: python -m stages {verb} ROW\nerror: ROW is {given}; params.yaml has {', '.join(known) or 'none'}",
            file=sys.stderr,
        )
        sys.exit(2)
    return arguments[0]
