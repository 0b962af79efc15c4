"""A stage as ``dvc.yaml`` declares it, tables resolved: command, dependencies, values of its
parameters. Light: no DVC.

Every process of a training reads this to find its checkpoints, and importing DVC takes a second. Of
DVC's templates only the unambiguous ones are supported: ``foreach`` and ``${...}`` over
``params.yaml``; anything else is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.runtime.bounded_yaml import YamlError, read_yaml
from stages.runtime.paths import PARAMS_FILE, PIPELINE_FILE
from stages.tracking.lineage.uri import TrackingError

_REFERENCE = re.compile(r"(?<!\\)\$\{\s*([^{}]*?)\s*\}")
#: Keys of a stage that change the meaning of its other keys.
_UNREAD = ("matrix", "vars", "wdir")


@dataclass(frozen=True)
class DeclaredStage:
    """``deps``: paths, in the order of ``dvc.yaml``. ``params``: file to the values of the keys
    listed for the stage."""

    name: str
    cmd: Any
    deps: tuple[str, ...]
    params: Mapping[str, Mapping[str, Any]]


def declared_stage(root: Path, name: str) -> DeclaredStage:
    """Read stage ``name`` (``grpo@bridge``) of ``dvc.yaml`` with the present parameters.

    Raises:
        TrackingError: a file is missing or damaged, ``dvc.yaml`` has no such stage, or declares it
            in an unsupported way.
    """
    pipeline, params = _table(root / PIPELINE_FILE), _table(root / PARAMS_FILE)
    group, _, key = name.partition("@")
    stages = pipeline.get("stages")
    entry = stages.get(group) if isinstance(stages, Mapping) else None
    if not isinstance(entry, Mapping):
        names = ", ".join(map(str, stages)) if isinstance(stages, Mapping) and stages else "none"
        raise TrackingError(
            "dvc.yaml",
            f"stages: {group!r} is not among them ({names})",
            f"add it, what {name} depends on is read there",
        )
    if "vars" in pipeline:
        raise TrackingError("dvc.yaml", "vars: is not read here", "move its values to params.yaml")
    context = dict(params)
    if "foreach" in entry:
        context |= _item(entry["foreach"], key, name, params)
        entry = entry.get("do")
    elif key:
        raise TrackingError("dvc.yaml", f"stages.{group}: has no foreach, hence no {name}", f"name {group}")
    if not isinstance(entry, Mapping):
        raise TrackingError("dvc.yaml", f"stages.{group}: is not a table", "write cmd, deps and params there")
    for unread in (unread for unread in _UNREAD if unread in entry):
        raise TrackingError(
            "dvc.yaml",
            f"stages.{group}.{unread}: is not read here",
            "write the stage without it, with foreach and params",
        )
    cmd, deps, listed = (
        _resolved(entry.get(part), context, f"stages.{group}.{part}") for part in ("cmd", "deps", "params")
    )
    return DeclaredStage(name, cmd, tuple(_paths(deps, group)), _values(root, params, listed, group))


def _table(path: Path) -> Mapping[str, Any]:
    try:
        table = read_yaml(path)
    except FileNotFoundError as error:
        raise TrackingError(str(path), "no such file", "run from the project's folder") from error
    except YamlError as error:
        raise TrackingError.from_error(error) from error
    if not isinstance(table, Mapping):
        raise TrackingError(str(path), "is not a table", f"restore it: git checkout -- {path.name}")
    return table


def _item(foreach: Any, key: str, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Values of ``item``, and of ``key`` in a table, for one member of a ``foreach``."""
    where = f"stages.{name.partition('@')[0]}.foreach"
    members = _resolved(foreach, params, where)
    if isinstance(members, Mapping):
        matches = [{"key": str(member), "item": item} for member, item in members.items() if str(member) == key]
    elif isinstance(members, Sequence) and not any(isinstance(item, (Mapping, list)) for item in members):
        matches = [{"item": item} for item in members if str(item) == key]
    else:
        raise TrackingError("dvc.yaml", f"{where}: is neither a table nor a list of names", "correct it there")
    if not matches:
        names = ", ".join(map(str, members)) or "none"
        raise TrackingError(
            "dvc.yaml", f"{where}: {key!r} is not among them ({names})", "name one of these, or add it to params.yaml"
        )
    return matches[0]


def _resolved(value: Any, context: Mapping[str, Any], where: str) -> Any:
    """Replace every ``${...}`` in ``value``; a text that consists of one reference becomes the
    value itself."""
    if isinstance(value, Mapping):
        return {_resolved(key, context, where): _resolved(part, context, where) for key, part in value.items()}
    if isinstance(value, list):
        return [_resolved(part, context, where) for part in value]
    if not isinstance(value, str):
        return value
    if (whole := _REFERENCE.fullmatch(value)) is not None:
        return _looked_up(context, whole[1], where)
    return _REFERENCE.sub(lambda match: _as_text(_looked_up(context, match[1], where), match[0], where), value)


def _as_text(value: Any, reference: str, where: str) -> str:
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    raise TrackingError(
        "dvc.yaml",
        f"{where}: {reference} is {type(value).__name__}, but is used inside a text",
        "name a text or a number",
    )


def _looked_up(context: Mapping[str, Any], keys: str, where: str, file: str = PARAMS_FILE) -> Any:
    value: Any = context
    for key in keys.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise TrackingError("dvc.yaml", f"{where}: {keys!r} is not in {file}", "add it there, or correct dvc.yaml")
        value = value[key]
    return value


def _paths(deps: Any, group: str) -> Iterator[str]:
    for dep in deps or ():
        if not isinstance(dep, str):
            raise TrackingError("dvc.yaml", f"stages.{group}.deps: {dep!r} is not a path", "write the path alone")
        yield dep


def _values(root: Path, params: Mapping[str, Any], listed: Any, group: str) -> dict[str, dict[str, Any]]:
    where = f"stages.{group}.params"
    values: dict[str, dict[str, Any]] = {}
    for entry in listed or ():
        for file, keys in (entry if isinstance(entry, Mapping) else {PARAMS_FILE: [entry]}).items():
            table = params if file == PARAMS_FILE else _table(root / file)
            values_of_file = table if keys is None else {key: _looked_up(table, key, where, file) for key in keys}
            values.setdefault(file, {}).update(values_of_file)
    return values
