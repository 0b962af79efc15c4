"""Rows of tables of text (CSV, TSV, columns between blanks) and of plain lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from stages.lib.annotations.annotation import SourceError, reject

#: Column of a container of kind ``lines``.
LINE = "line"


def table_rows(
    text: str, name: str, file: str, separator: str, columns: Sequence[str] | None
) -> Iterator[tuple[int, Any]]:
    """Iterate over a table: the line at which each row begins, and its columns by name, or the
    reject of a row that fits no header.

    Empty cells are absent values. ``columns``: names where the file has no header; the last one may
    be ``*NAME``, which takes the rest of the cells as a list. Blanks as ``separator`` stand for any
    number of them.

    Raises:
        SourceError: the file has no header, or a name stands in it twice.
    """
    # Not splitlines(), which also splits at characters that a cell may contain, such as U+2028.
    # Strict: a quote that is not closed would otherwise swallow the rows behind it silently.
    blanks = separator == " "
    table = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        quoting=csv.QUOTE_NONE if blanks else csv.QUOTE_MINIMAL,
        strict=True,
    )
    header = list(columns or ())
    while True:
        begins = table.line_num + 1
        try:
            cells = next(table)
        except StopIteration:
            if not header:
                raise SourceError(
                    file, "the table is empty", "put a header and rows there, or name another file"
                ) from None
            return
        except csv.Error as error:
            # Among them a cell of over 131,072 characters.
            detail = f"row: no CSV (lines {begins} to {table.line_num}): {error}; look for a quote without its second"
            yield begins, reject(f"{name}:{begins}", "bad-annotation", detail)
            continue
        if blanks:
            cells = [cell for cell in cells if cell]
        if not any(cells):
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            if twice := sorted({column for column in header if header.count(column) > 1}):
                raise SourceError(
                    file, f"line {begins}: column {twice[0]!r} stands in the header twice", "rename one of them"
                )
            continue
        yield begins, _row(cells, header, f"{name}:{begins}")


def _row(cells: list[str], header: Sequence[str], where: str) -> Any:
    rest = header[-1].removeprefix("*") if header[-1].startswith("*") else None
    if rest is not None:
        named, cells, left = header[:-1], cells[: len(header) - 1], cells[len(header) - 1 :]
    else:
        named, left = header, []
    if len(cells) != len(named):
        detail = f"row: {len(cells)} cells, the table has {len(named)} columns; look for a separator without quotes"
        return reject(where, "bad-annotation", detail)
    row: dict[str, Any] = {column: cell if cell else None for column, cell in zip(named, cells, strict=True)}
    if rest is not None:
        row[rest] = left
    return row


def line_rows(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Iterate over the lines of a text that are not blank, each as the column ``line``."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, {LINE: line.rstrip("\r")}
