"""Annotation formats that ingest reads, by their name in ``ingest.format``."""

from __future__ import annotations

from pathlib import Path

from stages.lib.annotations import activitynet_captions, coin, jsonl, kinetics, vidbridge_r1
from stages.lib.annotations.annotation import SourceError
from stages.lib.annotations.collect import Format, Source
from stages.params import IngestParams

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT for module in (jsonl, coin, kinetics, activitynet_captions, vidbridge_r1)
}


def read_source(params: IngestParams) -> Source:
    """Read the clips of ``ingest.source``, in the format ``ingest.format``, and the rejects.

    Raises:
        SourceError: the format does not exist, or the folder or its annotation file cannot be used
            at all.
    """
    chosen = FORMATS.get(params.format)
    if chosen is None:
        raise SourceError(
            "ingest.format", f"{params.format!r} is not a supported format", f"set one of {', '.join(FORMATS)}"
        )
    return chosen.read(Path(params.source), params.annotations or chosen.file)
