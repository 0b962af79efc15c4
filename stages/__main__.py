"""``python -m stages VERB [ROW]``: run one stage by itself. DVC calls this; `vidbridge run` and `dvc repro` are for people."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from stages.runtime import warm
from stages.runtime.dispatch import run_verb

#: Each is a module of this package with a ``main``, and a stage of ``dvc.yaml`` (but the last).
VERBS = tuple(warm.ASKED)


def run(arguments: Sequence[str]) -> None:
    """Run a verb in this process and exit with its status."""
    if not arguments or arguments[0] not in VERBS:
        given = " ".join(arguments) or "nothing"
        print(f"usage: python -m stages VERB [ROW]\nerror: VERB is {given}; there are {', '.join(VERBS)}", file=sys.stderr)
        sys.exit(2)
    verb, *rest = arguments
    run_verb(importlib.import_module(warm.MODULES.get(verb, f"stages.{verb}.stage")).main, *rest)


def main() -> None:
    arguments = sys.argv[1:]
    if (folder := os.environ.get(warm.VARIABLE)) and arguments:
        # Refused: it has ended, or never started; what it would have saved is time only.
        with suppress(warm.Refused):
            sys.exit(warm.ask(folder, arguments))
    run(arguments)


if __name__ == "__main__":
    main()
