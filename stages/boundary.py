"""Where a stage's expected errors become one line on stderr and exit code 1; anything else keeps its traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reported(stage: str, *expected: type[Exception]) -> Iterator[None]:
    """Turn ``expected`` errors, and a full disk, into ``error: <stage>: <message>`` and an exit.

    Raises:
        SystemExit: with code 1, after the line was printed.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        print(f"error: {stage}: the disk is full{where}; free some space and run the stage again", file=sys.stderr)
        raise SystemExit(1) from error
    except expected as error:
        print(f"error: {stage}: {error}", file=sys.stderr)
        raise SystemExit(1) from error
