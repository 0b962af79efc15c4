"""Loading of mappings: those that the package brings, and files of a project."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ValidationError

from stages.errors import InputError
from stages.lib.annotations.annotation import SourceError, short
from stages.lib.annotations.mapping import schema
from stages.lib.annotations.mapping.schema import Mapping
from stages.runtime.bounded_yaml import read_yaml
from stages.runtime.paths import MAPPING_SUFFIXES

#: Mappings of published data sets, ``NAME.yaml`` in rooms by subject.
SHIPPED = Path(__file__).parent / "shipped"


class MappingError(InputError, ValueError):
    """A mapping breaks a rule; the message names file and key, value and remedy."""


@cache
def shipped() -> dict[str, Path]:
    """The mappings of the package by their name in ``ingest.format``."""
    return {path.stem: path for path in sorted(SHIPPED.rglob("*.yaml"))}


def is_path(name: str) -> bool:
    """True if a value of ``ingest.format`` names a file of the project."""
    return name.endswith(MAPPING_SUFFIXES)


def load(path: Path) -> tuple[Mapping, ...]:
    """Load a mapping, or the mappings of several shapes of files that a document lists.

    Raises:
        SourceError: there is no such file.
        YamlError: it is not YAML.
        MappingError: a key is unknown or has a wrong value.
    """
    try:
        document = read_yaml(path)
    except FileNotFoundError as error:
        raise SourceError(
            "ingest.format", f"{str(path)!r} does not exist", "write the mapping, or correct the path"
        ) from error
    listed = document if isinstance(document, list) else [document]
    mappings = tuple(_mapping(one, path, (str(place),) * (len(listed) > 1)) for place, one in enumerate(listed))
    if not mappings:
        raise MappingError(str(path), "the document is empty", "write `video: COLUMN` and the other fields there")
    for place, mapping in enumerate(mappings):
        if len(mappings) > 1 and not mapping.files:
            raise MappingError(
                str(path), f"{place}.files: is missing", "say which files this one of the mappings is for"
            )
    return mappings


def chosen(mappings: tuple[Mapping, ...], name: str, path: Path) -> Mapping:
    """Choose the mapping of a file by its name.

    Raises:
        SourceError: none of several mappings is for it.
    """
    last = PurePosixPath(name).name
    for mapping in mappings:
        if any(fnmatchcase(name, pattern) or fnmatchcase(last, pattern) for pattern in mapping.files):
            return mapping
    if len(mappings) == 1:
        return mappings[0]
    known = ", ".join(pattern for mapping in mappings for pattern in mapping.files)
    raise SourceError(
        "ingest.annotations", f"{name!r} is none of the files that {path.name} is for ({known})", "name one of them"
    )


def _mapping(document: Any, path: Path, at: tuple[str, ...]) -> Mapping:
    if not isinstance(document, dict):
        problem = f"need a table of keys, found {type(document).__name__}"
        raise MappingError(str(path), problem, "write `video: COLUMN` and the other fields there")
    try:
        return Mapping.model_validate(document)
    except ValidationError as error:
        problems = [_problem(one, path, at) for one in error.errors(include_url=False)]
        first = problems[0]
        first.others = tuple(problems[1:])
        raise first from error


def _problem(error: Any, path: Path, at: tuple[str, ...]) -> MappingError:
    # Names of the members of unions are no keys of the document.
    keys = [str(part) for part in error["loc"] if not _is_member(str(part))]
    key = ".".join((*at, *keys)) or "the mapping"
    if error["type"] == "extra_forbidden":
        known = ", ".join(_siblings(keys[:-1]))
        return MappingError(str(path), f"{key}: unknown key", f"correct its spelling; there are {known}")
    if error["type"] == "missing":
        return MappingError(str(path), f"{key}: missing", "add it")
    problem = str(error["msg"]).removeprefix("Value error, ")
    return MappingError(
        str(path), f"{key}: {problem} (value {short(error['input'])})", "correct it (docs/guides/annotations.md)"
    )


def _is_member(part: str) -> bool:
    return part in _MEMBERS or "[" in part or part.startswith(("function-", "constrained-"))


def _siblings(keys: list[str]) -> list[str]:
    """Names of the keys of the table that ``keys`` lead to."""
    return next(
        (list(_TABLES[key].model_fields) for key in reversed(keys) if key in _TABLES), list(Mapping.model_fields)
    )


#: Types of the tables of a mapping by their key.
_TABLES: dict[str, type[BaseModel]] = {
    "video": schema.Video,
    "events": schema.Events,
    "qa": schema.Choice,
    "open_qa": schema.Open,
    "subjects": schema.Subjects,
    "conversation": schema.Conversation,
    "joins": schema.Join,
    "reject": schema.Rejection,
    "split": schema.Splits,
    "times": schema.Times,
    "parse": schema.Parsed,
    **dict.fromkeys(("caption", "question", "answer", "rationale", "licence"), schema.Text),
}
_MEMBERS = frozenset(
    (
        "str",
        "list",
        "dict",
        "tuple",
        "int",
        "float",
        "bool",
        "none",
        "Test",
        *(table.__name__ for table in _TABLES.values()),
    )
)
