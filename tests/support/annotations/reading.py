"""A published file beside real videos of the names that it needs, read by its format."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.lib.annotations.annotation import PART_REASONS
from stages.lib.annotations.collect import Source
from stages.lib.annotations.formats import read_source
from stages.lib.video.encoder import encode
from stages.params import IngestParams, load_params
from tests.support.annotations.files import Published
from tests.support.checkout import ROOT
from tests.support.siblings import ANNOTATIONS

#: The page with the table of counts.
PAGE = ROOT / "docs/results/annotation-files.md"


@cache
def _tiny() -> IngestParams:
    return load_params(ROOT / "params.yaml").ingest


def ingest_params(folder: Path, annotation_format: str, annotations: str | None = None) -> IngestParams:
    """The parameters of ingest for a folder; the rest is that of the recipe tiny."""
    changed = {"source": str(folder), "format": annotation_format, "annotations": annotations}
    return _tiny().model_copy(update=changed)


def one_video(folder: Path) -> Path:
    """A real H.264 file of a second, which stands for any other."""
    path = folder / "one.mp4"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        frames = np.stack([np.full((32, 32, 3), 20 * frame, np.uint8) for frame in range(8)])
        encode(frames, Fraction(8), path, crf=30)
    return path


def read_published(published: Published, folder: Path, video: Path) -> Source:
    """Copy a published file into ``folder``, link ``video`` under the names that it needs, and read
    it."""
    head, _, last = published.file.rpartition("/")
    name = f"{head.rpartition('/')[2]}/{last}" if "*" in last else last
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    found = sorted((ANNOTATIONS / head).glob(last))
    for file in found:
        shutil.copy(file, (folder / name).parent)
    for path in {folder / named for named in published.names(found[0])}:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(video, path)
    return read_source(ingest_params(folder, published.format, name))


class Counts(NamedTuple):
    """Rows of a file: read, used, and by reason those set aside and the parts of rows set aside."""

    read: int
    used: int
    set_aside: Counter[str]
    parts: Counter[str]

    def line(self, published: Published) -> str:
        """The file's line of the table."""

        def counted(reasons: Counter[str]) -> str:
            return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "–"

        cells = (
            f"`{published.file}`",
            f"`{published.format}`",
            f"{self.read:,}",
            f"{self.used:,}",
            counted(self.set_aside),
            counted(self.parts),
        )
        return f"| {' | '.join(cells)} |"


def counts(source: Source) -> Counts:
    """Count the rows of a file. A row is used if no reject of a whole row names its place."""
    whole = [r for r in source.rejects if r.reason not in PART_REASONS and r.reason != "no-annotation"]
    parts = Counter(r.reason for r in source.rejects if r.reason in PART_REASONS)
    return Counts(source.read, source.read - len(whole), Counter(r.reason for r in whole), parts)
