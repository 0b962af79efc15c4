"""``annotations.jsonl``: one JSON object a line for one video of a folder, times in seconds.

A row, of which only ``video`` has to be there; in the file it stands on one line::

    {"video": "kitchen/0001.mp4", "caption": "A man peels an onion.", "source": "kitchen", "split": "train",
     "label": "cooking", "licence": "CC BY 3.0", "events": [{"start": 0.0, "end": 1.5, "caption": "He peels it."}],
     "qa": [{"question": "What is peeled?", "options": ["An apple", "An onion"], "answer": "B"}],
     "subjects": [{"name": "man", "attributes": ["tall"], "actions": ["peels an onion"]}]}

Seconds are read exactly (``2.1`` is 21/10, ``"1001/30000"`` is that fraction).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from stages.domain.records import Reject
from stages.layout import ANNOTATIONS_FILE
from stages.sources.annotation import Annotation, Found, SourceError, annotated, read_text, reject, usable

_SOMETHING = re.compile(r"\S")


def read_annotations(folder: Path, name: str = ANNOTATIONS_FILE) -> tuple[list[Annotation], list[Reject]]:
    """The usable rows of a folder's annotation file, and what was set aside: ``bad-annotation`` (not JSON, or a field breaks a rule),
    and see :func:`~stages.sources.annotation.usable`.

    Raises:
        SourceError: the folder or its annotation file does not exist, is not UTF-8 text, or is a JSON document.
    """
    lines = read_lines(folder, name, "write one JSON object a line, see README")
    return usable(_rows(lines, name), folder, name)


def read_lines(folder: Path, name: str, what: str) -> list[str]:
    """The lines of an annotation file of JSON lines.

    Raises:
        SourceError: as :func:`~stages.sources.annotation.read_text`, or it is one JSON document: that is said once, not of each line.
    """
    text = read_text(folder, name, what)
    lines = text.split("\n")
    began = next((line.strip() for line in lines if line.strip()), "")
    # Lines of JSON begin with one that is an object; a document's first line is cut off in the middle of it, or holds it whole as a list.
    document = began.startswith("[") or began == "{"
    cut = began.startswith("{") and len(lines) > 1 and _json(began) is None
    rows = _rows_over_lines(text) if cut else 0
    if not document and cut:
        document = isinstance(_json(text), dict)
    if document or rows:
        shape = "a list" if began.startswith("[") else "an object"
        kind = f"{rows:,} rows that span several lines" if rows else f"this is a JSON document ({shape})"
        each = "." if rows else "'.[]'"
        new = Path(name).with_suffix(".jsonl").name
        new = new if new != Path(name).name else f"lines-{new}"
        raise SourceError(
            f"{folder / name}: {kind}, not JSON lines; write each row on a line of its own:"
            f" jq -c {each} {shlex.quote(Path(name).name)} > {shlex.quote(new)}, and name that in ingest.annotations"
        )
    return lines


def _rows_over_lines(text: str) -> int:
    """How many rows (objects that name a video) a text consists of, however they are laid out; 0 where it holds anything else."""
    decoder, place, rows = json.JSONDecoder(), 0, 0
    while found := _SOMETHING.search(text, place):
        try:
            row, place = decoder.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            return 0
        if not isinstance(row, dict) or "video" not in row:
            return 0
        rows += 1
    return rows


def _json(text: str) -> object:
    """The value of a text, None where it is not JSON (or null)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def json_lines(lines: Iterable[str], name: str) -> Iterator[tuple[str, str, object]]:
    """``FILE:LINE``, the line, and its value or why it has none; empty lines are skipped."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            yield where, line, json.loads(line)
        except json.JSONDecodeError as error:
            detail = f"not JSON: {error.msg}: column {error.colno}; a row must be whole, on one line"
            yield where, line, reject(where, "bad-annotation", detail)
        except (ValueError, RecursionError) as error:
            yield where, line, reject(where, "bad-annotation", f"not JSON: {error}")


def write_annotations(rows: Iterable[Annotation], file: Path) -> None:
    """Write rows in the format that :func:`read_annotations` reads, a line each; empty fields are left out."""
    with file.open("w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            plain = row.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
            out.write(json.dumps(plain, ensure_ascii=False) + "\n")


def videos_of(line: str) -> frozenset[str]:
    """The video that a broken row names, as far as it can be made out."""
    match = re.search(r'"video"\s*:\s*("(?:[^"\\]|\\.)*")', line)
    # It may be what breaks the row: "videos\\a.mp4" with single backslashes is no JSON.
    video = _json(match[1]) if match else None
    return frozenset([video]) if isinstance(video, str) else frozenset()


def _rows(lines: Iterable[str], name: str) -> Iterator[Found]:
    for where, line, raw in json_lines(lines, name):
        row, parts = (raw, ()) if isinstance(raw, Reject) else annotated(raw, where)
        yield Found(where, row, videos_of(line) if isinstance(row, Reject) else frozenset([row.video]), parts)
