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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from stages.domain.core.records import Reject
from stages.lib.annotations.annotation import Annotation, Format, Found, SourceError, annotated, read_text, reject, usable
from stages.runtime.paths import ANNOTATIONS_FILE
from stages.runtime.plain import not_json

#: Of a row that is written over several: so far its end is looked for.
MOST_LINES = 1000


def read_annotations(folder: Path, name: str = ANNOTATIONS_FILE) -> tuple[list[Annotation], list[Reject]]:
    """The usable rows of a folder's annotation file, and what was set aside: ``bad-annotation`` (not JSON, or a field breaks a rule),
    and see :func:`~stages.lib.annotations.annotation.usable`.

    Raises:
        SourceError: the folder or its annotation file does not exist, is not UTF-8 text, or is a JSON document.
    """
    lines = read_lines(folder, name, "write one JSON object a line, see README")
    return usable(_rows(lines, name), folder, name)


def read_lines(folder: Path, name: str, what: str) -> list[str]:
    """The lines of an annotation file of JSON lines.

    Raises:
        SourceError: as :func:`~stages.lib.annotations.annotation.read_text`, or it is one JSON document: that is said once, not of each line.
    """
    text = read_text(folder, name, what)
    lines = text.split("\n")
    began = next((line.strip() for line in lines if line.strip()), "")
    # A list, or a table of rows by name: one document. An object over several lines whose values are no objects is a row.
    document = began.startswith("[")
    if not document and began.startswith("{") and _json(began) is None:
        whole = _json(text)
        document = isinstance(whole, dict) and bool(whole) and all(isinstance(row, dict | list) for row in whole.values())
    if document:
        shape = "a list" if began.startswith("[") else "an object"
        raise SourceError(
            f"{folder / name}: this is a JSON document ({shape}), not JSON lines; write each row on a line of its own:"
            f" jq -c '.[]' {shlex.quote(Path(name).name)} > {_lines_name(name)}, and name that in ingest.annotations"
        )
    return lines


def _lines_name(name: str) -> str:
    """How a file of lines may be called that is made of ``name``, for a shell."""
    new = Path(name).with_suffix(".jsonl").name
    return shlex.quote(new if new != Path(name).name else f"lines-{new}")


def _json(text: str) -> object:
    """The value of a text, None where it is not JSON (or null)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def json_lines(lines: Sequence[str], name: str) -> Iterator[tuple[str, str, object]]:
    """``FILE:LINE``, the line, and its value or why it has none; empty lines are skipped. A row that was written over several lines is
    one reject, with all of its lines."""
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
                    f"a row must stand on one line, and this one takes lines {until - more} to {until}; write it on one:"
                    f" jq -c . {shlex.quote(Path(name).name)} > {_lines_name(name)}, and name that in ingest.annotations"
                )
                yield where, "\n".join(lines[until - more - 1 : until]), reject(where, "bad-annotation", detail)
            else:
                yield where, line, reject(where, "bad-annotation", not_json(error))
        else:
            yield where, line, value


def _lines_of_row(lines: Sequence[str], first: int) -> int:
    """On how many further lines a row goes on that begins at ``first``; 0: none that ends does."""
    if not lines[first].lstrip().startswith("{"):
        return 0
    text = "\n".join(lines[first : first + MOST_LINES]).lstrip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return 0
    return text.count("\n", 0, end)


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


def _rows(lines: Sequence[str], name: str) -> Iterator[Found]:
    for where, line, raw in json_lines(lines, name):
        row, parts = (raw, ()) if isinstance(raw, Reject) else annotated(raw, where)
        yield Found(where, row, videos_of(line) if isinstance(row, Reject) else frozenset([row.video]), parts)


FORMAT = Format("jsonl", read_annotations, ANNOTATIONS_FILE)
