"""A griffe extension: roles of reStructuredText in docstrings, such as ``:func:`x` ``, are read as
code spans."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")


def plain_roles(text: str) -> str:
    """Write each role of a text as a code span."""
    return _ROLE.sub(r"`\1`", text)


class PlainRoles(griffe.Extension):
    """Rewrite each docstring once it is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = plain_roles(obj.docstring.value)
