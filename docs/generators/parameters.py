"""The page of ``params.yaml``, from its types, their remarks and the remarks of the recipes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from generators.fields import fields_of
from generators.markdown import code, definition, joined, prose
from stages.params import Params

INTRODUCTION = """\
# params.yaml

Generated from the types that read the file. **Identity**: everything that changes a result, and nothing else; where
it runs comes from the [environment](environment.md). No key has a default in the code: every value stands in
`params.yaml`, and an unknown or missing key ends the command with its name. Keys that cancel each other are refused
when the file is read.

Each entry names the type, and the value in the recipes [`tiny`](../recipes/tiny.md) and
[`vidbridge-r1`](../recipes/vidbridge-r1.md) where it is short; one value where both have it. `ROW`
stands for a name that you choose (lower-case letters, digits and hyphens).
"""

RECIPES = ("tiny", "vidbridge-r1")
#: Longer values are left to the recipe's own file.
_SHORT = 60
#: Two remarks that are more alike than this say the same.
_ALIKE = 0.6


def page(root: Path) -> str:
    """The whole page: a heading for each key at the top level, an entry for each key below it."""
    texts = {name: (root / f"infra/recipes/{name}.yaml").read_text(encoding="utf-8") for name in RECIPES}
    values = {name: yaml.safe_load(text) for name, text in texts.items()}
    remarks = remarks_of_file(texts["tiny"])
    lines = [INTRODUCTION]
    for field in fields_of(Params):
        lines += [f"## {field.name}", ""]
        if field.remark or remarks.get(field.name):
            lines += [_told(field.remark, remarks.get(field.name, "")), ""]
        if not field.models:
            lines += definition(_term(field.name, field.kind, values), [""])
            continue
        for model in field.models:
            if len(field.models) > 1:
                lines += [f"### {field.name}: {kind_of(model)}", ""]
            if own_docstring(model):
                lines += [prose(own_docstring(model)), ""]
            prefix = f"{field.name}.ROW" if field.named else field.name
            lines += entries(model, prefix, values, remarks)
    return joined(lines)


def entries(
    model: type[BaseModel], prefix: str, values: Mapping[str, Any], remarks: Mapping[str, str]
) -> Iterator[str]:
    """The entries of a table's keys, those of tables inside it behind their own."""
    for field in fields_of(model):
        path = f"{prefix}.{field.name}"
        about = [_told(field.remark, remarks.get(path, ""))]
        if len(field.models) == 1 and own_docstring(field.models[0]):
            about.append(prose(own_docstring(field.models[0])))
        yield from definition(_term(path, field.kind, values), [text for text in about if text])
        for nested in field.models:
            where = f"{path} ({kind_of(nested)})" if len(field.models) > 1 else path
            yield from entries(nested, f"{where}.NAME" if field.named else where, values, remarks)


def kind_of(model: type[BaseModel]) -> str:
    """How a variant is chosen: the values of its ``kind``, else the type's name."""
    field = next((field for field in fields_of(model) if field.name == "kind"), None)
    return model.__name__ if field is None else f"kind {field.kind}"


def own_docstring(model: type[BaseModel]) -> str:
    """The type's own docstring; nothing where it only inherits one."""
    return str(model.__dict__.get("__doc__") or "")


def remarks_of_file(text: str) -> dict[str, str]:
    """Dotted key to the remark above it or behind it; rows of the tables sft, difficulty and grpo
    are called ROW."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    above: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"( *)# ?(.*)$", line):
            above.append(match[2])
        elif match := re.match(r"( *)([A-Za-z0-9_-]+):(.*)$", line):
            indent, key = len(match[1]), match[2]
            path = [part for part in path if part[0] < indent]
            key = "ROW" if path and len(path) == 1 and path[0][1] in ("sft", "difficulty", "grpo") else key
            path.append((indent, key))
            behind = re.search(r"  # (.*)$", match[3])
            remark = " ".join([*above, *([behind[1]] if behind else [])])
            # What opens the file is about the file.
            if remark and key != "recipe":
                found.setdefault(".".join(part for _, part in path), remark)
            above = []
        else:
            above = []
    return found


def _told(remark: str, in_file: str) -> str:
    """Both remarks as one paragraph, one of them where they say the same; null is what the file
    calls None."""
    remark = re.sub(r"\bNone\b", "null", remark)
    alike = SequenceMatcher(None, remark, in_file).ratio() > _ALIKE
    both = [remark] if in_file in remark or alike else [remark, in_file]
    return " ".join(prose(f"{text}." if text[-1] not in ".:!?;" else text) for text in both if text)


def _term(path: str, kind: str, values: Mapping[str, Any]) -> str:
    found = dict(_values(path, values))
    same = len(found) == len(values) and len(set(found.values())) == 1
    shown = (
        code(next(iter(found.values())))
        if same
        else "; ".join(f"{name} {code(value)}" for name, value in found.items())
    )
    return (
        f'<span id="{re.sub("[^a-zA-Z0-9_.-]", "-", path)}"></span>{code(path)} ·'
        f" {kind}{f' · {shown}' if shown else ''}"
    )


def _values(path: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, tree in values.items():
        try:
            value = _at(re.sub(r" \(.*?\)", "", path).split("."), tree)
        except KeyError:
            continue
        text = json.dumps(value, ensure_ascii=False)
        if len(text) <= _SHORT and not isinstance(value, dict):
            yield name, text


def _at(path: list[str], tree: Any) -> Any:
    """Raises: KeyError: there is no such key."""
    for key in path:
        if not isinstance(tree, dict) or not tree:
            raise KeyError(key)
        # Of the rows of a table the last: of `tiny` the general stage.
        tree = tree[list(tree)[-1]] if key in ("ROW", "NAME") else tree[key]
    return tree
