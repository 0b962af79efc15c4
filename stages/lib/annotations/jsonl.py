"""Reader of ``annotations.jsonl``: one JSON object per line and video, times in seconds.

A row, in the file on one line; only ``video`` is required::

    {"video": "kitchen/0001.mp4", "caption": "A man peels an onion.", "source": "kitchen",
     "split": "train", "label": "cooking", "licence": "CC BY 3.0",
     "events": [{"start": 0.0, "end": 1.5, "caption": "He peels it."}],
     "qa": [{"question": "What is peeled?", "options": ["An apple", "An onion"], "answer": "B"}],
     "subjects": [{"name": "man", "attributes": ["tall"], "actions": ["peels an onion"]}],
     "answers": {"count": {"question": "How many onions?", "number": 3}}}

Seconds are exact (``2.1`` is 21/10, ``"1001/30000"`` is that fraction).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from stages.domain.core.records import Reject
from stages.lib.annotations.annotation import Found, SourceError, annotated, read_text, reject
from stages.lib.annotations.collect import Format, Source, usable
from stages.runtime.paths import ANNOTATIONS_FILE
from stages.runtime.plain import not_json

#: Most lines searched for the end of a row that is spread over several.
MOST_LINES = 1000


def read_annotations(folder: Path, name: str = ANNOTATIONS_FILE) -> Source:
    """Read the usable rows of a folder's annotation file, and the rejects.

    Reasons: ``bad-annotation`` (not JSON, or a field breaks a rule), and those of
    :func:`~stages.lib.annotations.annotation.usable`.

    Raises:
        SourceError: the folder or its annotation file does not exist, is not UTF-8 text, or is a
            JSON document.
    """
    lines = read_lines(folder, name, "write one JSON object a line, see README")
    return usable(_rows(lines, name), folder, name)


def read_lines(folder: Path, name: str, remedy: str) -> list[str]:
    """Read the lines of an annotation file of JSON lines.

    Raises:
        SourceError: as :func:`~stages.lib.annotations.annotation.read_text`, or the file is one
            JSON document: one error instead of a reject per line.
    """
    text = read_text(folder, name, remedy)
    lines = text.split("\n")
    began = next((line.strip() for line in lines if line.strip()), "")
    # A list, or a table of rows by name, is a document. An object over several lines whose values
    # are not objects is a row.
    document = began.startswith("[")
    if not document and began.startswith("{") and _json(began) is None:
        whole = _json(text)
        document = (
            isinstance(whole, dict) and bool(whole) and all(isinstance(row, dict | list) for row in whole.values())
        )
    if document:
        shape = "a list" if began.startswith("[") else "an object"
        raise SourceError(
            f"{folder / name}",
            f"this is a JSON document ({shape}), not JSON lines",
            f"write each row on a line of its own:"
            f" jq -c '.[]' {shlex.quote(Path(name).name)} > {_lines_name(name)}, and name that in ingest.annotations",
        )
    return lines


def _lines_name(name: str) -> str:
    """Suggest a name, quoted for a shell, of the file of lines that is made from ``name``."""
    new = Path(name).with_suffix(".jsonl").name
    return shlex.quote(new if new != Path(name).name else f"lines-{new}")


def _json(text: str) -> object:
    """Parse a text as JSON; None if it is not JSON (or null)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def json_lines(lines: Sequence[str], name: str) -> Iterator[tuple[str, str, object]]:
    """Iterate over the lines that are not empty: ``FILE:LINE``, the line, and its value or a
    reject.

    A row that is spread over several lines is one reject, with all of its lines.
    """
    number = 0
    while number < len(lines):
        line, where = lines[number], f"{name}:{number + 1}"
        number += 1
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if more := _lines_of_row(lines, number - 1):
                until, number = number + more, number + more
                detail = (
                    f"a row must stand on one line, and this one takes lines {until - more} to {until}; write it on"
                    f" one: jq -c . {shlex.quote(Path(name).name)} > {_lines_name(name)}, and name that in"
                    " ingest.annotations"
                )
                yield where, "\n".join(lines[until - more - 1 : until]), reject(where, "bad-annotation", detail)
            else:
                yield where, line, reject(where, "bad-annotation", not_json(error))
        else:
            yield where, line, value


def _lines_of_row(lines: Sequence[str], first: int) -> int:
    """Number of further lines of a row that begins at ``first``; 0 if no complete row begins
    there."""
    if not lines[first].lstrip().startswith("{"):
        return 0
    text = "\n".join(lines[first : first + MOST_LINES]).lstrip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return 0
    return text.count("\n", 0, end)


def videos_of(line: str) -> frozenset[str]:
    """Extract the video that an invalid row names, if it is readable."""
    match = re.search(r'"video"\s*:\s*("(?:[^"\\]|\\.)*")', line)
    # The name itself may make the row invalid: "videos\\a.mp4" with single backslashes is not JSON.
    video = _json(match[1]) if match else None
    return frozenset([video]) if isinstance(video, str) else frozenset()


def _rows(lines: Sequence[str], name: str) -> Iterator[Found]:
    for where, line, raw in json_lines(lines, name):
        row, parts = (raw, ()) if isinstance(raw, Reject) else annotated(raw, where)
        yield Found(where, row, videos_of(line) if isinstance(row, Reject) else frozenset([row.video]), parts)


FORMAT = Format("jsonl", read_annotations, ANNOTATIONS_FILE)
