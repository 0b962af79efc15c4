"""Fields of pydantic types as a reader sees them: name, type, default, and the remark above them in
the source."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel


class Field(NamedTuple):
    """A field. ``kind``: its type in words. ``models``: the types of nested tables, one for each
    variant of a union."""

    name: str
    kind: str
    remark: str
    models: tuple[type[BaseModel], ...]
    named: bool
    required: bool


@cache
def fields_of(model: type[BaseModel]) -> tuple[Field, ...]:
    """The fields of a type, inherited ones first."""
    found = []
    remarks = remarks_of(model)
    schema = model.model_json_schema()
    for name, info in model.model_fields.items():
        models = tuple(models_in(info.annotation))
        named = get_origin(info.annotation) is dict
        exact = info.annotation is Fraction or Fraction in get_args(info.annotation)
        shown = (
            "exact number, such as `8` or `30000/1001`"
            if exact
            else written(schema["properties"][name], schema.get("$defs", {}))
        )
        found.append(Field(name, shown, remarks.get(name, ""), models, named, info.is_required()))
    return tuple(found)


def remarks_of(model: type[BaseModel]) -> dict[str, str]:
    """Field to the ``#:`` remark above it, through all bases."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if base is BaseModel or not issubclass(base, BaseModel):
            continue
        lines, classes = source(inspect.getfile(base))
        if base.__name__ not in classes:  # made at import, a field for each task
            continue
        for node in classes[base.__name__].body:
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
                continue
            above = node.lineno - 2
            remark: list[str] = []
            while above >= 0 and lines[above].strip().startswith("#:"):
                remark.insert(0, lines[above].strip().removeprefix("#:").strip())
                above -= 1
            if remark:
                found[node.target.id] = " ".join(remark)
    return found


@cache
def source(file: str) -> tuple[list[str], dict[str, ast.ClassDef]]:
    """The lines of a module, and its classes by name."""
    text = Path(file).read_text(encoding="utf-8")
    return text.splitlines(), {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic types that an annotation names, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    if get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from models_in(part)


def written(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A JSON schema in words: ``integer, at least 1``; ``token or sequence``; ``list of text``."""
    if (reference := schema.get("$ref")) is not None:
        name = reference.rpartition("/")[2]
        target = definitions[name]
        return "table" if target.get("type") == "object" else written(target, definitions)
    if (several := schema.get("anyOf") or schema.get("oneOf")) is not None:
        return " or ".join(dict.fromkeys(written(each, definitions) for each in several))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{each}`" for each in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        if "prefixItems" in schema:
            return "list of " + ", ".join(dict.fromkeys(written(each, definitions) for each in schema["prefixItems"]))
        item = written(schema["items"], definitions) if schema.get("items") else ""
        return f"list of {item}{'s' if item == 'table' else ''}" if item else "list"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"table of {written(values, definitions)}" if isinstance(values, Mapping) and values else "table"
    names = {
        "string": "text",
        "boolean": "`true` or `false`",
        "null": "`null`",
        "integer": "integer",
        "number": "number",
    }
    bounds = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
        "multipleOf": "multiple of",
    }
    limits = [f"{word} {schema[key]:,}" for key, word in bounds.items() if key in schema]
    return ", ".join([names.get(str(kind), "any value"), *limits])
