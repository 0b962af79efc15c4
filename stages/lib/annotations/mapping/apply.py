"""A row of a table becomes rows of annotations, or rejects."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from stages.domain.core.records import Reject, Split
from stages.lib.annotations.annotation import Found, annotated, reject, short
from stages.lib.annotations.files import VideoFiles
from stages.lib.annotations.mapping.columns import ColumnProblem, Entry, holds, value_of
from stages.lib.annotations.mapping.containers.raw import Raw
from stages.lib.annotations.mapping.entries import entries_of, plain_text, single, text_of
from stages.lib.annotations.mapping.events import Part, time_in, timed_events
from stages.lib.annotations.mapping.joins import Joined
from stages.lib.annotations.mapping.questions import asked
from stages.lib.annotations.mapping.schema import Mapping, Parsed, Splits
from stages.lib.annotations.mapping.times import two_times
from stages.lib.annotations.mapping.videos import Locator
from stages.lib.annotations.placeholders import is_placeholder

#: Spellings of the splits' names.
SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class Mapper:
    """Applies a mapping to rows, one at a time."""

    def __init__(self, mapping: Mapping, folder: Path, files: VideoFiles, joined: Joined) -> None:
        self.mapping, self._joined = mapping, joined
        self.locator = Locator(mapping.video, folder, files)
        made = {name for pattern in mapping.patterns.values() for name in re.compile(pattern).groupindex}
        self._used = mapping.columns_used() | set(mapping.ignore) | made
        #: Columns that a row had; by column of the mapping, how many of ``rows`` lacked it.
        self.seen: dict[str, None] = {}
        self.lacking: dict[str, int] = {}
        #: Columns that the mapping does not name, and how many rows were rejected for them.
        self.unmapped: dict[str, int] = {}
        self.rows = 0

    def rows_of(self, raw: Raw) -> Iterator[Found]:
        """Convert one row of a file; a row with ``each`` becomes several."""
        for found in self._rows_of(raw):
            self.rows += 1
            yield found

    def _rows_of(self, raw: Raw) -> Iterator[Found]:
        entry = None
        if isinstance(raw.value, Reject):
            yield Found(raw.where, raw.value, frozenset())
            return
        try:
            entry = self._prepared(raw)
            problem = self._unfit(entry, raw.where)
            entries = [] if problem else entries_of(entry, self.mapping.each, "each")
        except ColumnProblem as error:
            problem, entries = self._refused(error, raw.where), []
        if problem is not None:
            yield Found(raw.where, problem, self._named(entry, raw.where))
        elif self.mapping.each is not None and not entries:
            yield Found(raw.where, reject(raw.where, "empty-row", "each: the row has no entry"), frozenset())
        unmapped = self._unmapped(entry, len(entries), raw.where) if entries else None
        for one in entries:
            try:
                found = self._found(one, raw.where)
            except ColumnProblem as error:
                found = Found(raw.where, self._refused(error, raw.where), frozenset())
            # A column that is missing is told first: it may be one of these, misspelt.
            if unmapped is not None and not isinstance(found.row, Reject):
                found = Found(raw.where, unmapped, found.videos)
            yield found

    def _named(self, entry: Entry | None, where: str) -> frozenset[str]:
        """The videos of a row that is not used, as far as its columns name them."""
        example = self.locator.example
        try:
            entries = [] if entry is None else entries_of(entry, self.mapping.each, "each")
            found = [self.locator.locate(one, where) for one in entries]
        except ColumnProblem:
            # It is rejected already, with a reason of its own.
            return frozenset()
        finally:
            self.locator.example = example
        return frozenset(one.video for one in found if not isinstance(one, Reject))

    def _refused(self, error: ColumnProblem, where: str) -> Reject:
        if error.missing:
            self.lacking[error.column] = self.lacking.get(error.column, 0) + 1
        return reject(where, "bad-annotation", str(error))

    def _prepared(self, raw: Raw) -> Entry:
        """The row with the columns that the mapping makes of others."""
        value = raw.value
        columns = dict(value) if isinstance(value, dict) else None
        for name in columns or ():
            self.seen.setdefault(str(name))
        entry = Entry(value if columns is None else columns, raw.key, None, raw.file, raw.split)
        made: dict[str, Any] = {}
        for path, form in self.mapping.parse.items():
            if (text := value_of(entry, path)) is not None:
                made[path.removesuffix("?")] = _parsed(text, form, path.removesuffix("?"))
        for path, pattern in self.mapping.patterns.items():
            text = value_of(entry, path)
            match = re.fullmatch(pattern, str(text)) if text is not None else None
            if match is not None:
                made |= match.groupdict()
            elif not path.endswith("?"):
                raise ColumnProblem(path, f"{short(text)} does not match the pattern {pattern!r} of the mapping")
            else:
                made |= dict.fromkeys(re.compile(pattern).groupindex)
        for name, rows in self._joined.of(entry).items():
            made[name] = rows
        if not made:
            return entry
        whole = {**(columns if columns is not None else {"$value": value}), **made}
        return Entry(whole, raw.key, None, raw.file, raw.split)

    def _unfit(self, entry: Entry, where: str) -> Reject | None:
        for rule in self.mapping.reject:
            if holds(entry, rule.when):
                return reject(where, rule.reason, rule.why)
        return None

    def _unmapped(self, entry: Entry | None, entries: int, where: str) -> Reject | None:
        """The reject of a row with columns that the mapping does not name; ``entries``: how many it
        becomes."""
        if self.mapping.others is not None or entry is None or not isinstance(entry.value, dict):
            return None
        unknown = ", ".join(str(name) for name in entry.value if name not in self._used and name != "$value")
        if not unknown:
            return None
        self.unmapped[unknown] = self.unmapped.get(unknown, 0) + entries
        detail = f"{unknown}: the mapping names no such column; use it, or add it to `ignore` (`others: ignore`: all)"
        return reject(where, "unmapped-column", detail)

    def _found(self, entry: Entry, where: str) -> Found:
        located = self.locator.locate(entry, where)
        if isinstance(located, Reject):
            return Found(where, located, frozenset())
        named = frozenset([located.video])
        try:
            return self._annotated(entry, where, located.video, cut=located.cut)
        except ColumnProblem as error:
            return Found(where, self._refused(error, where), named)

    def _annotated(self, entry: Entry, where: str, video: str, *, cut: bool) -> Found:
        mapping, named = self.mapping, frozenset([video])
        part = self._part(entry)
        length = None if mapping.length is None else time_in(entry, mapping.length, mapping.times)
        if cut and length is None and part.start is not None and part.end is not None:
            length = part.end - part.start
        questions = asked(mapping, entry, where)
        captions, repeated = self._captions(entry, questions.captions, where)
        events, problems = timed_events(mapping, entry, where, part, cut=cut)
        if events and not (captions or questions.qa or questions.open_qa) and all(map(is_placeholder, events)):
            detail = f"{video}: {short(events[0]['caption'])} at [0, 1] stands for no annotation; leave the row out"
            return Found(where, reject(where, "placeholder", detail), named)
        raw = {
            "video": video,
            "start": None if cut else part.start,
            "end": None if cut else part.end,
            "id": self._single(entry, mapping.id),
            "source": self._single(entry, mapping.source),
            "split": self._split(entry),
            "label": self._single(entry, mapping.label),
            "licence": None if mapping.licence is None else text_of(entry, mapping.licence) or None,
            "caption": captions[0] if captions else None,
            "captions": captions[1:],
            "events": events,
            "qa": questions.qa,
            "open_qa": questions.open_qa,
            "subjects": self._subjects(entry),
            "answers": self._answers(entry),
        }
        row, parts = annotated(raw, where, length_s=length)
        return Found(where, row, named, (*problems, *repeated, *questions.rejects, *parts))

    def _single(self, entry: Entry, column: str | None) -> str | None:
        return None if column is None else single(value_of(entry, column), column)

    def _part(self, entry: Entry) -> Part:
        mapping = self.mapping
        start, end = mapping.start, mapping.end
        if mapping.span is not None:
            value = value_of(entry, mapping.span)
            if value is None:
                return Part(None, None)
            try:
                first, last = two_times(value)
            except ValueError as error:
                raise ColumnProblem(mapping.span, str(error)) from error
            pair = Entry({"start": first, "end": last}, entry.key, entry, entry.file, entry.split)
            return Part(time_in(pair, "start", mapping.times), time_in(pair, "end", mapping.times))
        return Part(
            None if start is None else time_in(entry, start, mapping.times),
            None if end is None else time_in(entry, end, mapping.times),
        )

    def _split(self, entry: Entry) -> str | None:
        spec = self.mapping.split
        if spec is None:
            return None
        column, names = (spec.of, spec.names) if isinstance(spec, Splits) else (spec, SPLITS)
        value = plain_text(value_of(entry, column), column)
        if not value:
            return None
        for name, split in names.items():
            if fnmatchcase(value.lower(), name.lower()):
                return split
        if column == "$file":
            return None
        raise ColumnProblem(column.removesuffix("?"), f"{value!r} is none of {', '.join(names)}")

    def _captions(self, entry: Entry, described: list[str], where: str) -> tuple[list[str], list[Reject]]:
        texts = [] if self.mapping.caption is None else [text_of(entry, self.mapping.caption)]
        for column in self.mapping.captions:
            value = value_of(entry, column)
            values = value if isinstance(value, list | tuple) else [value]
            texts += [plain_text(one, column) for one in values if one is not None]
        known: dict[str, None] = {}
        repeated = []
        for text in filter(None, [*texts, *described]):
            if text in known:
                repeated.append(reject(where, "repeated-part", f"captions: {short(text)} stands in the row twice"))
            known.setdefault(text)
        return list(known), repeated

    def _subjects(self, entry: Entry) -> list[dict[str, Any]]:
        found = []
        for spec in self.mapping.subjects:
            for one in entries_of(entry, spec.each, "subjects"):
                if not holds(one, spec.when):
                    continue
                subject: dict[str, Any] = {"name": value_of(one, spec.name)}
                for field, path in (("attributes", spec.attributes), ("actions", spec.actions)):
                    if path is not None and (value := value_of(one, path)) is not None:
                        subject[field] = value if isinstance(value, list | tuple) else [value]
                found.append(subject)
        return found

    def _answers(self, entry: Entry) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for spec in self.mapping.answers:
            for one in entries_of(entry, spec.each, "answers"):
                if holds(one, spec.when):
                    values = {field: value_of(one, column) for field, column in spec.fields.items()}
                    given = {field: value for field, value in values.items() if value is not None}
                    if given:
                        found.setdefault(spec.task, []).append(given)
        return found


def _parsed(text: Any, form: Parsed, column: str) -> Any:
    if not isinstance(text, str):
        return text
    try:
        if form.split is not None:
            return [piece.strip() for piece in re.split(form.split, text) if piece and piece.strip()]
        return json.loads(text) if form.form == "json" else ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ColumnProblem(column, f"{short(text)} is no {form.form} list ({type(error).__name__})") from error
