"""Second tables of a mapping: captions apart from videos, answers apart from questions."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from stages.domain.core.records import Reject
from stages.lib.annotations.annotation import SourceError
from stages.lib.annotations.mapping.columns import ColumnProblem, Entry, value_of
from stages.lib.annotations.mapping.containers.raw import Raw
from stages.lib.annotations.mapping.containers.read import container_of, file_names, raw_rows
from stages.lib.annotations.mapping.schema import Join, Mapping


class Joined:
    """The rows of the second tables by their key. ``rejects``: of rows that cannot be read."""

    def __init__(self, mapping: Mapping, folder: Path, name: str) -> None:
        self._joins = mapping.joins
        self.rejects: list[Reject] = []
        self._tables = {to: self._table(to, join, folder, name) for to, join in mapping.joins.items()}
        self._matched = dict.fromkeys(self._joins, 0)
        self._example: dict[str, str] = {}

    def _table(self, to: str, join: Join, folder: Path, name: str) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = defaultdict(list)
        if join.optional and join.file is not None and not (folder / join.file).exists():
            return {}
        for file in [name] if join.file is None else file_names(folder, join.file):
            for raw in raw_rows(folder, file, container_of(join)):
                if isinstance(raw.value, Reject):
                    self.rejects.append(raw.value)
                    continue
                key = self._key(join, raw, to)
                rows[key].append(raw.value)
                if not join.many and len(rows[key]) > 1:
                    raise SourceError(
                        raw.where,
                        f"joins.{to}: a second row has the key {key!r}",
                        "set `many: true` in the mapping, or remove one of the rows",
                    )
        return dict(rows)

    def _key(self, join: Join, raw: Raw, to: str) -> str:
        try:
            return str(value_of(Entry(raw.value, raw.key, None, raw.file, raw.split), join.key))
        except ColumnProblem as error:
            raise SourceError(f"joins.{to}.key", f"{raw.where}: {error}", "correct it in the mapping") from error

    def of(self, entry: Entry) -> dict[str, Any]:
        """The rows that belong to a row, by the name of their table.

        Raises:
            ColumnProblem: the row has no such key.
        """
        found: dict[str, Any] = {}
        for to, join in self._joins.items():
            key = str(value_of(entry, join.equals))
            rows = self._tables[to].get(key, [])
            self._matched[to] += bool(rows)
            self._example.setdefault(to, key)
            found[to] = rows if join.many else (rows[0] if rows else None)
        return found

    def unmatched(self) -> SourceError | None:
        """The error of a second table of which no row belongs to any row."""
        for to, count in self._matched.items():
            if not count and to in self._example and self._tables[to]:
                theirs = next(iter(self._tables[to]))
                return SourceError(
                    "joins",
                    f"{to}: no row of the second table belongs to a row: {self._joins[to].equals} is"
                    f" {self._example[to]!r} here, {self._joins[to].key} is {theirs!r} there",
                    "make them equal by templates, such as key: v_{id}",
                )
        return None
