"""Reader of Kinetics-400, -600 and -700 (Kay et al., 2017): ten-second clips with one label. A CSV
file for each split.

Columns and file names follow github.com/cvdfoundation/kinetics-dataset at 3f0f5d9 and the CSV files
it downloads: ``label``, ``youtube_id``, ``time_start``, ``time_end``, ``split`` and, in some,
``is_cc``; a clip is ``<youtube_id>_<start>_<end>.mp4`` with six digits each. A label applies to its
window only: a file ``<youtube_id>.mp4`` is the whole recording, of which the window is a part; a
file with the name of a window and another length is another recording, and is rejected. The test
files of some years have no label. VidBridge-R1 mixed clips from Kinetics.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, Field

from stages.domain.core.records import Reject, Split
from stages.lib.annotations.annotation import Found, SourceError, annotated, read_text, reject, validated
from stages.lib.annotations.collect import Format, Source, usable
from stages.lib.annotations.files import VideoFiles

FILE = "kinetics.csv"
_SPLITS: dict[str, Split] = {
    "train": "train",
    "val": "validation",
    "validate": "validation",
    "validation": "validation",
    "test": "test",
}
_NEEDED = ("youtube_id", "time_start", "time_end")


class _Row(BaseModel):
    label: str | None = None
    youtube_id: str = Field(min_length=1)
    time_start: int = Field(ge=0)
    time_end: int = Field(ge=0)
    split: str | None = None
    is_cc: bool = False


def read_kinetics(folder: Path, name: str = FILE) -> Source:
    """Read the usable clips of a Kinetics folder, and the rejects.

    Raises:
        SourceError: the file does not exist, or its header lacks a column.
    """
    text = read_text(folder, name, "put the CSV file of a split there, or name it in ingest.annotations")
    # Not splitlines(), which also splits at characters that a name may contain, such as U+2028.
    table = csv.DictReader(io.StringIO(text, newline=""))
    missing = [column for column in _NEEDED if column not in (table.fieldnames or ())]
    if missing:
        raise SourceError(
            f"{folder / name}",
            f"line 1: no column {', '.join(missing)}",
            f"Kinetics has {', '.join(_NEEDED)}, label, split",
        )
    return usable(_rows(table, name, folder), folder, name)


def _rows(table: csv.DictReader[str], name: str, folder: Path) -> Iterator[Found]:
    files = VideoFiles(folder)
    while True:
        begins = table.line_num + 1
        try:
            raw = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            # A field of over 131,072 characters, as an unclosed quote makes of the rest of the
            # file.
            where = f"{name}:{begins}"
            yield Found(
                where,
                reject(where, "bad-annotation", f"row: no CSV: {error}; look for a quote without its second"),
                frozenset(),
            )
            continue
        where = f"{name}:{table.line_num}"
        yield _found(
            {key: value for key, value in raw.items() if key is not None and value not in (None, "")}, where, files
        )


def _found(raw: dict[str, Any], where: str, files: VideoFiles) -> Found:
    row = validated(_Row, raw, where)
    if isinstance(row, Reject):
        return Found(where, row, frozenset())
    stem = f"{row.youtube_id}_{row.time_start:06d}_{row.time_end:06d}"
    video = files.find([stem, row.youtube_id], where)
    if isinstance(video, Reject):
        return Found(where, video, frozenset())
    named = frozenset([video])
    if row.time_end <= row.time_start:
        window = f"time_start {row.time_start} and time_end {row.time_end}: need time_start < time_end"
        return Found(where, reject(where, "bad-annotation", window), named)
    if row.split is not None and row.split not in _SPLITS:
        return Found(
            where, reject(where, "bad-annotation", f"split: {row.split!r} is none of {', '.join(_SPLITS)}"), named
        )
    whole = PurePosixPath(video).stem == row.youtube_id
    length = None if whole else Fraction(row.time_end - row.time_start)
    # Several clips may be cut from one recording; they stay in one split.
    annotation = {
        "video": video,
        "start": row.time_start if whole else None,
        "end": row.time_end if whole else None,
        "id": stem,
        "source": row.youtube_id,
        "split": _SPLITS[row.split] if row.split else None,
        "label": row.label,
        "licence": "CC BY (is_cc)" if row.is_cc else None,
    }
    return Found(where, annotated(annotation, where, length_s=length)[0], named)


FORMAT = Format("kinetics", read_kinetics, FILE)
