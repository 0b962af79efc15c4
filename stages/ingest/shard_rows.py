"""Rows of shards in the layout of WebDataset, as lines of an annotation file: the members
``KEY.json`` and ``KEY.txt`` of a sample say what ``KEY.mp4`` shows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from stages.runtime.sources.shards import Refused, Shard, key_of


def rows_of(shards: Mapping[str, Shard]) -> Iterator[dict[str, Any] | Refused]:
    """The row of each sample of these shards, in order; a refusal of those without one.

    ``KEY.json`` is the row, as a line of an annotation file; ``video`` is the sample's own unless
    it says otherwise, and ``KEY.txt`` its caption.
    """
    found: dict[str, str] = {}
    for shard_name, shard in shards.items():
        by_key: dict[str, list[str]] = {}
        for name in shard.videos:
            by_key.setdefault(key_of(name), []).append(name)
        for key in shard.keys:
            where = f"{shard_name}/{key}"
            texts, videos = shard.texts.get(key, {}), by_key.get(key, [])
            if key in found:
                detail = f"{key!r} stands in {found[key]} already; give each sample a key of its own"
                yield Refused(where, "duplicate-id", detail)
                continue
            found[key] = shard_name
            if not texts:
                continue  # a video without a row: read as one that no row names
            row: Any = {}
            if ".json" in texts:
                try:
                    row = json.loads(texts[".json"])
                except (ValueError, RecursionError) as error:
                    yield Refused(where, "bad-annotation", f"{key}.json is not JSON ({error}); correct it")
                    continue
                if not isinstance(row, dict):
                    detail = f"{key}.json: need one JSON object, found {type(row).__name__}"
                    yield Refused(where, "bad-annotation", detail)
                    continue
            if "video" not in row and len(videos) == 1:
                row = {"video": videos[0], **row}
            if ".txt" in texts and "caption" not in row:
                row = {**row, "caption": texts[".txt"].strip()}
            yield row
