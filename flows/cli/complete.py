"""Shell completion of values: read from the project's files, without a server, and nothing where
they cannot be read.

A shell calls this at every press of Tab, so nothing heavy is imported. ``vidbridge
--install-completion`` switches it on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.runtime.paths import PARAMS_FILE, PIPELINE_FILE

_ALIASES = ("champion", "candidate")


def stages(incomplete: str) -> list[str]:
    """Stages of ``dvc.yaml``; a row of a table as ``grpo@bridge``."""
    pipeline, params = _table(PIPELINE_FILE), _table(PARAMS_FILE)
    found = []
    for name, stage in _mapping(pipeline.get("stages")).items():
        members = _mapping(stage).get("foreach")
        if members is None:
            found.append(str(name))
            continue
        value: Any = params
        for key in str(members).strip("${} ").split("."):
            value = _mapping(value).get(key)
        found += [f"{name}@{row}" for row in value or ()]
    return _beginning(incomplete, found)


def recipes(incomplete: str) -> list[str]:
    """Recipes of the project, and those that come with the package."""
    from flows.processes.environment import recipe_files

    return _beginning(incomplete, recipe_files(_root()))


def benchmarks(incomplete: str) -> list[str]:
    """Names of public benchmarks."""
    from stages.tools.suites.published.registry import BENCHMARKS

    return _beginning(incomplete, BENCHMARKS)


def versions(incomplete: str) -> list[str]:
    """Aliases, and the registered models' names as ``models:/NAME@champion``."""
    return _beginning(incomplete, [*_ALIASES, *(f"models:/{name}@champion" for name in _models())])


def model_uris(incomplete: str) -> list[str]:
    """Registered models' names as ``models:/NAME@champion``."""
    return _beginning(incomplete, [f"models:/{name}@champion" for name in _models()])


def models(incomplete: str) -> list[str]:
    """Registered models' names."""
    return _beginning(incomplete, _models())


def settings(incomplete: str) -> list[str]:
    """Full names of parameters, for ``--set``."""
    return _beginning(incomplete, [f"{name}=" for name in _leaves("", _table(PARAMS_FILE))])


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _root() -> Path | None:
    from stages.runtime.project import ProjectError, find_project

    try:
        return find_project()
    except ProjectError:  # reported by the command itself; Tab stays silent
        return None


def _table(name: str) -> Mapping[str, Any]:
    from stages.runtime.bounded_yaml import YamlError, read_yaml

    root = _root()
    try:
        return _mapping(None if root is None else read_yaml(root / name))
    except (OSError, YamlError):  # reported by the command itself; Tab stays silent
        return {}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _leaves(name: str, value: object) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _leaves(f"{name}.{key}".lstrip("."), part)
    else:
        yield name


def _models() -> list[str]:
    """Registered models' names from a database file only: a press of Tab does not wait for a
    server.
    """
    import sqlite3
    from contextlib import closing

    from stages.tracking.lineage.uri import sqlite_path, tracking_uri

    root = _root()
    if root is None:
        return []
    database = sqlite_path(tracking_uri(root))
    if database is None or not database.is_file():
        return []
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=0.2)) as store:
            names = [str(row[0]) for row in store.execute("SELECT name FROM registered_models ORDER BY name")]
    except sqlite3.Error:  # in use, or not a database
        return []
    # NAME.gate keeps decisions, and no weights.
    return [name for name in names if not name.endswith(".gate")]
