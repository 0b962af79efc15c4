"""Run one verb of ``python -m stages`` in this process. Our own errors end it with one clear line,
defects with a traceback."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from stages.errors import VidbridgeError, fault_of
from stages.runtime.plain import fit, guard_logs
from stages.runtime.verbs import VERBS

#: Module that explains errors of servers, stores and remotes.
FOREIGN = "stages.tracking.runs.foreign"


def run(arguments: Sequence[str]) -> NoReturn:
    """Run a verb and exit with its status; wrong usage exits with status 2 and lists the verbs."""
    if not arguments or arguments[0] not in VERBS:
        value = " ".join(arguments) or "nothing"
        print(
            f"usage: python -m stages VERB [ROW]\nerror: VERB is {value}; there are {', '.join(VERBS)}", file=sys.stderr
        )
        sys.exit(2)
    verb, *rest = arguments
    run_verb(importlib.import_module(VERBS[verb].module).main, *rest)


def run_verb(main: Callable[..., int | None], *arguments: str) -> NoReturn:
    """Call ``main`` and exit with its status: 0 success, 1 failure with a message, 2 wrong usage.

    The message of an exception that this project defines names field, value and remedy, so only the
    message is printed. Any other exception is a defect and keeps its traceback.
    """
    guard_logs()
    try:
        status = main(*arguments)
    except VidbridgeError as error:
        for one in error.each():
            print(f"error: {fit(one)}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if (fault := fault_of(error)) is None:
            raise
        print(f"error: {fit(fault)}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        # Imported by name, as the verbs are: it belongs to a layer above this module.
        if (message := importlib.import_module(FOREIGN).sentence_of(error)) is None:
            raise
        print(f"error: {fit(message)}", file=sys.stderr)
        sys.exit(1)
    sys.exit(status or 0)


def one_row(verb: str, arguments: list[str], rows: list[str]) -> str:
    """Return the row that a verb was called with; wrong usage exits with status 2 and lists the
    rows."""
    if len(arguments) != 1 or arguments[0] not in rows:
        value = " ".join(arguments) or "nothing"
        print(
            f"usage: python -m stages {verb} ROW\nerror: ROW is {value}; params.yaml has {', '.join(rows) or 'none'}",
            file=sys.stderr,
        )
        sys.exit(2)
    return arguments[0]
