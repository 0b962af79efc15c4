"""Annotation files that are one JSON document: an object with an entry for each video."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.lib.annotations.annotation import SourceError


def entries(text: str, name: str, folder: Path, below: str | None = None) -> Iterator[tuple[str, str, Any]]:
    """``FILE:LINE``, key and value of each entry, in the file's order; ``below`` names the field that holds the entries.

    Raises:
        SourceError: no JSON, or no object where the entries should be.
    """
    file = folder / name
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        first = text.partition("\n")[0].strip()
        if first.startswith("{") and first.endswith("}"):
            raise SourceError(f"{file}: these are JSON lines, not a JSON document ({error}); see ingest.format") from error
        raise SourceError(f"{file}: not JSON: {error}; download it again") from error
    found = document.get(below) if below and isinstance(document, dict) else document
    if not isinstance(found, dict):
        raise SourceError(f"{file}: {below or 'the document'} is no object with an entry for each video; see ingest.format")
    # json tells no line once a document is whole; keys come in the file's order, so each is looked for behind the one before.
    at, line = 0, 1
    for key, value in found.items():
        here = text.find(json.dumps(key, ensure_ascii=False) + ":", at)
        if here >= 0:
            at, line = here, line + text.count("\n", at, here)
        yield f"{name}:{line}", key, value
