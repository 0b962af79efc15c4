"""Set single values in the text of a ``params.yaml``, in place; comments and all other values
stay."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from flows.errors import UsageError
from stages.runtime import paths
from stages.runtime.bounded_yaml import YamlError, end_of, parse_yaml

#: A number as people type it, which is a text in YAML 1.1.
_SHORT_FLOAT = re.compile(r"([-+]?\d+)(\.\d*)?[eE]([-+]?)(\d+)")


def with_settings(text: str, settings: Sequence[str], name: str = paths.PARAMS_FILE) -> str:
    """Text of a ``params.yaml`` with each of ``settings`` (``grpo.general.steps=50``) applied. Does
    not check its rules.

    Raises:
        UsageError: a setting has another form, or names what is not in the file.
        YamlError: the text is not YAML.
    """
    for setting in settings:
        keys, sign, value = setting.partition("=")
        if not sign or not keys or not value.strip():
            raise UsageError("--set", f"{setting!r} is not NAME=VALUE", "write it as grpo.general.steps=50")
        text = _with_value(text, keys.strip().split("."), _as_yaml(value.strip(), setting), name)
    return text


def _with_value(text: str, keys: Sequence[str], value: str, name: str) -> str:
    table = parse_yaml(text, name)  # before PyYAML builds anything of it
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for depth, key in enumerate(keys):
        pairs = {named.value: part for named, part in node.value} if isinstance(node, yaml.MappingNode) else {}
        if key not in pairs:
            where = ".".join(keys[:depth]) or "the file"
            choices = f"it has {', '.join(pairs)}" if pairs else "it is a single value"
            raise UsageError(
                "--set", f"{'.'.join(keys)} is not in {name} ({where}: {choices})", "name a value that stands there"
            )
        node, table = pairs[key], table[key]
    start, end = node.start_mark.index, end_of(node)
    if isinstance(table, (dict, list)) and table and "\n" in text[start:end]:
        raise UsageError(
            "--set", f"{'.'.join(keys)} is a table of several lines", f"set its values one by one, or edit {name}"
        )
    space = "" if text[start - 1].isspace() else " "  # behind a key without a value
    return text[:start] + space + value + text[end:]


def _as_yaml(value: str, setting: str) -> str:
    if found := _SHORT_FLOAT.fullmatch(value):
        value = f"{found[1]}{found[2] or '.0'}e{found[3] or '+'}{found[4]}"
    try:
        parsed = parse_yaml(value, "--set")
        # As it will stand: behind a key, with a line after it, and inside of braces.
        placed = parse_yaml(f"a: {{key: {value}, more: 1}}\n", "--set")
    except YamlError as error:
        raise UsageError(
            "--set",
            f"{setting!r}: its value is not YAML of one line",
            "put quotes around a text, inside of the shell's",
        ) from error
    if "\n" in value or placed != {"a": {"key": parsed, "more": 1}}:
        raise UsageError(
            "--set",
            f"{setting!r}: its value is not YAML of one line",
            "put quotes around a text, inside of the shell's",
        )
    return value
