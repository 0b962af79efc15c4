"""Entry point of the command ``vidbridge``: it imports next to nothing, so that Ctrl-C prints a
sentence from the first moment on, and ends as soon as its work is done.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

from stages.errors import Terminated
from stages.runtime.dispatch import import_quickly, run_and_leave

#: As shells expect it of what Ctrl-C has ended.
INTERRUPTED = 130


def main() -> None:
    """Run the command and end the process."""
    import_quickly()
    run_and_leave(_run)


def _run() -> None:
    """Import the command line and run it. SIGTERM ends it as Ctrl-C does, also where this is the
    first process of a container.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        from flows.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)
    except Terminated:
        sys.stderr.write("terminated; what this command had started has been ended\n")
        raise


def _terminate(number: int, _frame: FrameType | None) -> None:
    # Once: what is ended in order now should not be cut short by a second one.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated(128 + number)


if __name__ == "__main__":
    main()
