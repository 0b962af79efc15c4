"""Edit ``ingest.exclude`` in the text of a ``params.yaml`` in place, with all comments and other
values unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from stages.params import ExcludedVideo, ParamsError, parse_params
from stages.runtime import paths
from stages.runtime.bounded_yaml import end_of, parse_yaml


def with_excluded(text: str, videos: Sequence[ExcludedVideo], name: str = paths.PARAMS_FILE) -> str:
    """Set ``ingest.exclude`` to these videos in the text of a ``params.yaml``; all else is
    unchanged.

    Raises:
        YamlError, ParamsError: the text is not a ``params.yaml``.
    """
    parse_yaml(text, name)  # before PyYAML builds anything of it
    node = _value(_value(yaml.compose(text, Loader=yaml.SafeLoader), "ingest", name), "exclude", name)
    lines = [f"    {{video: {_quoted(video.video)}, sha256: {_quoted(video.sha256)}}},\n" for video in videos]
    listed = "[\n" + "".join(lines) + "  ]" if lines else "[]"
    changed = text[: node.start_mark.index] + listed + text[end_of(node) :]
    parse_params(parse_yaml(changed, name), name)
    return changed


def _value(node: Any, key: str, name: str) -> Any:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    node_of_key = next((value for named, value in pairs if named.value == key), None)
    if node_of_key is None:
        parse_params({}, name)  # raises the error about the missing key
        raise ParamsError(name, "has no ingest.exclude", "write `exclude: []` below `ingest:`")
    return node_of_key


def _quoted(text: str | None) -> str:
    # Digits alone would be a number, and some hashes are one with an exponent.
    if text is None:
        return "null"
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=1_000_000).strip()
