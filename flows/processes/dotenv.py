"""The project's ``.env``: circumstance that every command reads by itself. It never overrides a
variable of the environment.
"""

from __future__ import annotations

import os
from pathlib import Path

from flows.errors import UsageError
from stages.runtime.project import find_project

FILE = ".env"


def load() -> Path | None:
    """Read the ``.env`` of the project's folder into this process's environment; returns its path,
    None if there is none.

    Outside of a project nothing is read: the working directory may be anyone's, and a setting can
    name a program.

    Lines are ``NAME=value`` as a shell reads them: quotes, ``export``, comments and ``${OTHER}``
    mean what they mean there.

    Raises:
        UsageError: a line is none of these, or the file cannot be read.
        ProjectError: ``VIDBRIDGE_PROJECT`` names a folder that is not a project.
    """
    folder = find_project()
    if folder is None or not (path := folder / FILE).is_file():
        return None
    # 40 ms, where there is a file.
    from dotenv.main import resolve_variables
    from dotenv.parser import parse_stream

    try:
        with path.open(encoding="utf-8") as file:
            lines = list(parse_stream(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(str(path), f"cannot be read ({error})", "mend it, or remove it") from error
    for line in lines:
        if line.error:
            raise UsageError(
                str(path), f"line {line.original.line}: not NAME=value", "correct it, or comment it out with #"
            )
    found = resolve_variables(((line.key, line.value) for line in lines if line.key is not None), override=False)
    for name, value in found.items():
        if value is not None:
            os.environ.setdefault(name, value)
    return path
