"""The page of environment variables, from the remarks of ``.env.example``."""

from __future__ import annotations

import re
from typing import NamedTuple

from generators.markdown import code, definition, joined, prose

INTRODUCTION = """\
# Environment variables

Generated from `.env.example`. **Circumstance**: where and how the pipeline runs (servers, devices, folders, keys).
Nothing here changes a result; what does stands in [`params.yaml`](params.md). Every variable may be left unset.

```bash
cp .env.example .env
vidbridge doctor      # shows what is in force
```

`vidbridge` reads `.env` of the project's folder by itself; variables of the environment take
precedence. Other programs (`dvc`, `prefect`) do not read it: `set -a; . ./.env; set +a`.
"""

_HEADING = re.compile(r"# --- (.+?) -+$")
_VARIABLE = re.compile(r"(#?)([A-Z][A-Z0-9_]*)=(.*)$")


class Group(NamedTuple):
    """Variables that one remark describes, each with the value that the file shows, and the
    remark."""

    variables: tuple[tuple[str, str], ...]
    remark: str


def page(example: str) -> str:
    """The page for the text of ``.env.example``."""
    lines = [INTRODUCTION]
    for heading, groups in sections(example).items():
        lines += [f"## {heading}", ""]
        for group in groups:
            terms = [
                f"{code(name)}{f' · default or example {code(value)}' if value else ''}"
                for name, value in group.variables
            ]
            lines += definition("\n".join(terms), [prose(group.remark)])
    return joined(lines)


def sections(example: str) -> dict[str, list[Group]]:
    """Heading to groups of variables, in the order of the file.

    Raises:
        ValueError: a variable stands before the first heading, or has no remark.
    """
    found: dict[str, list[Group]] = {}
    heading, remark, variables = "", [], []  # type: str, list[str], list[tuple[str, str]]

    def close() -> None:
        if variables:
            if not heading or not remark:
                raise ValueError(f".env.example: {variables[0][0]}: no heading or no remark stands above it; write one")
            found[heading].append(Group(tuple(variables), " ".join(remark)))
        remark.clear()
        variables.clear()

    for line in example.splitlines():
        if match := _HEADING.match(line):
            close()
            heading = match[1]
            found[heading] = []
        elif match := _VARIABLE.match(line):
            variables.append((match[2], match[3]))
        elif line.startswith("#") and heading:
            if variables:
                close()
            remark.append(line.removeprefix("#").strip())
    close()
    return found
