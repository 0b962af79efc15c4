"""Keys of a mapping. Each field of an annotation is a path or a template of columns
(:mod:`stages.lib.annotations.mapping.columns`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from stages.domain.core.records import Exact, Record, Split, TaskName
from stages.lib.annotations.choices import AnswerForm
from stages.lib.annotations.mapping.columns import Conditions, checked, path_checked, paths_in, regular, steps
from stages.lib.annotations.mapping.containers.raw import Kind
from stages.lib.annotations.mapping.times import FORMS, Form


def _listed(value: Any) -> Any:
    """Read one value as a list of one."""
    return value if isinstance(value, list | tuple) else (value,)


def _named_form(value: Any) -> Any:
    if isinstance(value, str) and value not in FORMS:
        raise ValueError(f"{value!r} is no form of times; set one of {', '.join(FORMS)}")
    return value


def _form(value: Any) -> Any:
    """Read the name of a form as a table with this form."""
    return {"form": _named_form(value)} if isinstance(value, str) else value


#: A path, or a template of paths.
Column = Annotated[str, AfterValidator(checked)]
Path = Annotated[str, AfterValidator(path_checked)]
Pattern = Annotated[str, AfterValidator(regular)]


class Times(Record):
    """How times are written."""

    form: Annotated[Form, BeforeValidator(_named_form)]
    #: Frames a second, for ``frames``: a number, or the path of its column.
    rate: Exact | Path | None = None

    @model_validator(mode="after")
    def _frames_have_a_rate(self) -> Times:
        if (self.form == "frames") != (self.rate is not None):
            raise ValueError("form frames needs a rate (a number or a column), and no other form has one")
        return self


TimesField = Annotated[Times, BeforeValidator(_form)]


class Text(Record):
    """A text that is not a column as it stands."""

    #: Column of the text.
    of: Column | None = None
    #: The text itself, the same for every row.
    text: str | None = None
    #: Name of the XML-like tag around it (``answer``): text without it is refused.
    tag: str | None = Field(default=None, pattern=r"^\w+$")

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Text:
        if (self.of is None) == (self.text is None):
            raise ValueError("set either `of` (a column) or `text` (a constant)")
        return self


def _text(value: Any) -> Any:
    return {"of": value} if isinstance(value, str) else value


TextField = Annotated[Text, BeforeValidator(_text)]
#: Entries of a row: the path of a list or an object, or parallel lists by the names that their
#: values get.
Each = Path | dict[str, Path]


class Video(Record):
    """One way in which the file of a row may be named."""

    path: Column
    #: ``path``: below the folder; ``name``: a file of this name anywhere in the folder; ``stem``:
    #: a file of this name without suffix anywhere. None: ``path`` if the name has the suffix of a
    #: video, or a folder; else ``stem``.
    find: Literal["path", "name", "stem"] | None = None
    #: Removed from the beginning of the path.
    strip: str = ""
    #: Put before the path.
    add: str = ""
    #: The file is the part already: ``start`` and ``end`` of the row say where it was cut from.
    cut: bool = False
    when: Conditions = Field(default_factory=dict)


def _video(value: Any) -> Any:
    return tuple({"path": one} if isinstance(one, str) else one for one in _listed(value))


class Splits(Record):
    """Names of splits in a column; names may have wildcards."""

    of: Column
    names: dict[str, Split] = Field(min_length=1)


class Listed(Record):
    """Parts of a row: one, or one for each entry of a list."""

    each: Each | None = None
    when: Conditions = Field(default_factory=dict)


class Events(Listed):
    """Timed events: ``start`` and ``end``, or both in ``span``."""

    start: Column | None = None
    end: Column | None = None
    span: Column | None = None
    caption: TextField
    times: TimesField | None = None
    #: What the times count from: the beginning of the ``file``, or of the ``part`` of it that the
    #: row is about.
    relative: Literal["file", "part"] = "file"

    @model_validator(mode="after")
    def _has_times(self) -> Events:
        if (self.span is None) == (self.start is None) or (self.start is None) != (self.end is None):
            raise ValueError("set either `span`, or `start` and `end`")
        return self


class Choice(Listed):
    """Multiple-choice questions."""

    question: TextField
    #: Column of a list or object of options, or a column for each; ``in_question``: a line each in
    #: the question.
    options: Literal["in_question"] | Path | tuple[Path, ...]
    answer: TextField
    answer_form: AnswerForm = "stated"
    rationale: TextField | None = None


class Open(Listed):
    """Questions without options."""

    question: TextField
    answer: TextField


class Subjects(Listed):
    """Persons and things that are visible."""

    name: Column
    attributes: Path | None = None
    actions: Path | None = None


class Answers(Listed):
    """Objects that a task reads."""

    task: TaskName
    #: By field: the column whose value it gets, whatever that is; null: the field is left out.
    fields: dict[Annotated[str, Field(min_length=1)], Column] = Field(min_length=1)


class Conversation(Record):
    """Turns of a user and an assistant. Each pair becomes a multiple-choice question where options
    stand in the question, a caption where a description is asked for, and else an open question."""

    turns: Path
    role: Path
    text: Path
    user: tuple[str, ...] = Field(min_length=1)
    assistant: tuple[str, ...] = Field(min_length=1)
    system: tuple[str, ...] = ()
    #: A regular expression of the whole question that asks for a description of the video.
    description: Pattern
    when: Conditions = Field(default_factory=dict)


class Join(Record):
    """Rows of a second table that belong to each row, as a column."""

    #: None: the same file.
    file: str | None = Field(default=None, min_length=1)
    container: Kind | None = None
    separator: str | None = None
    columns: tuple[str, ...] | None = None
    rows: Path | None = None
    #: Column of the second table, and the one of the first that it equals.
    key: Column
    equals: Column
    #: True: a list of all rows with this key; False: the only one, or null.
    many: bool = False
    #: The file may be missing; then no row of it belongs to any.
    optional: bool = False


class Parsed(Record):
    """A column whose text holds several values."""

    #: ``python``: a list as Python writes it; ``json``.
    form: Literal["python", "json"] | None = None
    #: A regular expression that separates the values; empty ones are left out.
    split: Pattern | None = None

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Parsed:
        if (self.form is None) == (self.split is None):
            raise ValueError("set python, json, or split: a regular expression")
        return self


def _parsed(value: Any) -> Any:
    return {"form": value} if isinstance(value, str) else value


class Rejection(Record):
    """Rows that are not used, and why."""

    when: Conditions = Field(min_length=1)
    reason: str = Field(pattern=r"^[a-z0-9-]+$")
    why: str = Field(min_length=1)


class Mapping(Record):
    """The mapping of one file, or of files of one shape."""

    #: What the mapping is for.
    about: str = ""
    #: Names of files that the mapping is for, with wildcards; a document that lists several
    #: mappings needs it.
    files: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    container: Kind | None = None
    separator: str | None = None
    columns: tuple[str, ...] | None = None
    #: Fields of a JSON document that lead to the list (or object) of rows.
    rows: Path | None = None
    joins: dict[str, Join] = Field(default_factory=dict)
    parse: dict[str, Annotated[Parsed, BeforeValidator(_parsed)]] = Field(default_factory=dict)
    #: By column: a regular expression whose named groups become columns. A question mark behind
    #: the column: what does not match is left alone.
    patterns: dict[str, Pattern] = Field(default_factory=dict)
    reject: tuple[Rejection, ...] = ()
    #: Each row is several: one for each of these entries.
    each: Each | None = None

    video: Annotated[tuple[Video, ...], BeforeValidator(_video), Field(min_length=1)]
    id: Column | None = None
    source: Column | None = None
    split: Column | Splits | None = None
    label: Column | None = None
    licence: TextField | None = None
    #: The part of the file that the row is about.
    start: Column | None = None
    end: Column | None = None
    span: Column | None = None
    times: TimesField = Times(form="seconds")
    #: Duration of the file; a longer file is another recording.
    length: Column | None = None
    caption: TextField | None = None
    captions: Annotated[tuple[Column, ...], BeforeValidator(_listed)] = ()
    events: Annotated[tuple[Events, ...], BeforeValidator(_listed)] = ()
    qa: Annotated[tuple[Choice, ...], BeforeValidator(_listed)] = ()
    open_qa: Annotated[tuple[Open, ...], BeforeValidator(_listed)] = ()
    subjects: Annotated[tuple[Subjects, ...], BeforeValidator(_listed)] = ()
    answers: Annotated[tuple[Answers, ...], BeforeValidator(_listed)] = ()
    conversation: Conversation | None = None
    #: Texts that stand for a video in a question; they are removed.
    placeholders: tuple[str, ...] = ()
    #: Columns that are not used; ``others: ignore``: all that the mapping does not name.
    ignore: tuple[str, ...] = ()
    others: Literal["ignore"] | None = None

    @model_validator(mode="after")
    def _part_has_two_ends(self) -> Mapping:
        if self.span is not None and (self.start is not None or self.end is not None):
            raise ValueError("set either `span`, or `start` and `end`")
        if any(video.cut for video in self.video) and self.span is None and self.end is None:
            raise ValueError("video: `cut` is set, and the mapping names no `start` and `end` (or `span`)")
        return self

    def columns_used(self) -> frozenset[str]:
        """First names of all paths that are looked up in a row."""
        names = set(self.joins) | {path.removesuffix("?") for path in (*self.parse, *self.patterns)}
        for join in self.joins.values():
            names |= _roots(join.equals, inside=False)
        names |= _each_roots(self.each, inside=False)
        for rule in self.reject:
            names |= {root for path in rule.when for root in _roots(path, inside=False)}
        for text in _texts(self, skipped=("reject", "joins", "parse", "patterns", "each", "files", "ignore")):
            names |= _roots(text, inside=self.each is not None)
        parts: tuple[Listed, ...] = (*self.events, *self.qa, *self.open_qa, *self.subjects, *self.answers)
        for spec in parts:
            names |= _each_roots(spec.each, inside=self.each is not None)
            for text in _texts(spec, skipped=("each", "times")):
                names |= _roots(text, inside=self.each is not None or spec.each is not None)
        return frozenset(names)


def _each_roots(each: Each | None, *, inside: bool) -> set[str]:
    paths = [] if each is None else [each] if isinstance(each, str) else list(each.values())
    return {root for path in paths for root in _roots(path, inside=inside)}


def _roots(text: str, *, inside: bool) -> set[str]:
    """First names of the paths of a column; ``inside`` an entry only what ``$outer`` leads to."""
    roots = set()
    for path in paths_in(text):
        names = [step.name for step in steps(path)[0]]
        outer = bool(names) and names[0] == "$outer"
        while names and names[0] == "$outer":
            names = names[1:]
        if names and not names[0].startswith("$") and (outer or not inside):
            roots |= {names[0], path.removesuffix("?")}
    return roots


#: Fields of the types above that hold paths or templates.
_COLUMNS = frozenset(
    (
        "video",
        "path",
        "id",
        "source",
        "split",
        "label",
        "licence",
        "start",
        "end",
        "span",
        "length",
        "caption",
        "captions",
        "of",
        "question",
        "options",
        "answer",
        "rationale",
        "name",
        "attributes",
        "actions",
        "turns",
        "when",
        "rate",
        "times",
        "conversation",
        "fields",
    )
)


def _texts(spec: Record, skipped: tuple[str, ...] = ()) -> Iterator[str]:
    for name in type(spec).model_fields:
        if name in _COLUMNS and name not in skipped:
            value = getattr(spec, name)
            for one in value if isinstance(value, tuple) else (value,):
                if name == "when":
                    yield from value
                elif name == "fields":
                    yield from value.values()
                elif isinstance(one, str) and one != "in_question":
                    yield one
                elif isinstance(one, Conversation):
                    yield one.turns
                elif isinstance(one, Record):
                    yield from _texts(one)
