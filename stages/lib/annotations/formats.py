"""The annotation formats that ingest reads: a name for ``ingest.format``, a reader, and the file it looks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from stages.domain.core.records import Reject
from stages.lib.annotations import activitynet_captions, coin, kinetics, vidbridge_r1
from stages.lib.annotations.annotation import Annotation
from stages.lib.annotations.jsonl import read_annotations
from stages.params import IngestParams
from stages.runtime.paths import ANNOTATIONS_FILE

Read = Callable[[Path, str], tuple[list[Annotation], list[Reject]]]


class Format(NamedTuple):
    read: Read
    file: str


#: As ``params.IngestParams.format`` names them.
FORMATS: dict[str, Format] = {
    "jsonl": Format(read_annotations, ANNOTATIONS_FILE),
    "coin": Format(coin.read_coin, coin.FILE),
    "kinetics": Format(kinetics.read_kinetics, kinetics.FILE),
    "activitynet_captions": Format(activitynet_captions.read_activitynet_captions, activitynet_captions.FILE),
    "vidbridge_r1": Format(vidbridge_r1.read_vidbridge_r1, vidbridge_r1.FILE),
}


def read_source(params: IngestParams) -> tuple[list[Annotation], list[Reject]]:
    """The usable rows of ``ingest.source`` and what was set aside, in the format that ``ingest`` names.

    Raises:
        SourceError: the folder or its annotation file cannot be used at all.
    """
    chosen = FORMATS[params.format]
    return chosen.read(Path(params.source), params.annotations or chosen.file)
