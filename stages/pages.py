"""Pages that stand alone: templates filled in, and pictures as text inside them."""

from __future__ import annotations

import base64
from typing import Any

import jinja2


def fill(template: str, *, trim_blocks: bool = False, **content: Any) -> str:
    """A file of ``stages/templates`` with its places filled in; what is put in is escaped as HTML.

    Args:
        template: the file's name.
        trim_blocks: leave out the line break behind each block, for text where it would be seen.
        content: what the places are called, and what goes there.

    Raises:
        jinja2.UndefinedError: the template names a place that ``content`` lacks.
    """
    environment = jinja2.Environment(
        autoescape=True, loader=jinja2.PackageLoader("stages"), undefined=jinja2.StrictUndefined, trim_blocks=trim_blocks
    )
    return environment.get_template(template).render(content)


def in_base64(content: bytes) -> str:
    """Bytes as a page holds them: in a ``data:`` address, or in the hash that a content-security policy names a script by."""
    return base64.b64encode(content).decode()
