"""A row as a container holds it, before its columns have a meaning."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

#: ``json``: one document; ``jsonl``: a JSON object a line; ``csv``, ``tsv``: a table of text;
#: ``lines``: a line of text a row, in the column ``line``; ``parquet``; ``arrow``: a folder that
#: ``datasets`` has saved.
Kind = Literal["json", "jsonl", "csv", "tsv", "lines", "parquet", "arrow"]
#: Kind of a container by the suffix of its name; a folder is ``arrow``.
BY_SUFFIX: dict[str, Kind] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "lines",
    ".parquet": "parquet",
    ".arrow": "arrow",
}


class Raw(NamedTuple):
    """A row of a file.

    ``where``: ``FILE:LINE``, or ``FILE:row N`` where the file has no lines; ``value``: its columns
    by name, another value for a list of values, or the reject of what is unreadable; ``key``: its
    key in an object, or its place from 0; ``file``: name of the file without folder and suffix;
    ``split``: the split of a ``datasets`` folder.
    """

    where: str
    value: Any
    key: str | int
    file: str
    split: str | None = None
