"""Writing of ``annotations.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from stages.lib.annotations.annotation import Annotation


def write_annotations(rows: Iterable[Annotation], file: Path) -> None:
    """Write rows in the format that :mod:`stages.lib.annotations.jsonl` reads, one per line; empty
    fields are omitted."""
    with file.open("w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            plain = row.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
            out.write(json.dumps(plain, ensure_ascii=False) + "\n")
