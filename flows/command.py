"""Where the command ``vidbridge`` begins: it imports next to nothing, so that Ctrl-C is a sentence from the first moment on."""

from __future__ import annotations

import sys

#: As shells expect it of what Ctrl-C has ended.
INTERRUPTED = 130


def main() -> None:
    """Import the command line and run it."""
    try:
        from flows.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
