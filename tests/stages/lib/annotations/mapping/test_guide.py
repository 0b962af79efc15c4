"""The examples of the guide: each mapping loads, and the first one reads its table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stages.lib.annotations.formats import FORMATS
from stages.lib.annotations.mapping.document import load, shipped
from tests.support.annotations.mapped import Mapped
from tests.support.checkout import ROOT

GUIDE = (ROOT / "docs/guides/annotations.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_every_mapping_of_the_guide_loads(text: str, tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(text)
    (mapping,) = load(tmp_path / "ours.yaml")
    assert mapping.video


def test_the_guide_names_every_format() -> None:
    listed = GUIDE.partition("## A mapping")[0]
    assert [name for name in (*FORMATS, *shipped()) if f"`{name}`" not in listed] == []


def test_the_first_example_reads_its_table(mapped: Mapped) -> None:
    (row,), rejects = mapped(blocks("yaml")[0], blocks("csv")[0], "left/rec_000007.mp4", "events.csv")
    assert rejects == []
    assert (row.video, row.source_id, row.split) == ("left/rec_000007.mp4", "0007", "train")
    assert [(float(event.start), float(event.end), event.caption) for event in row.events] == [
        (1.0, 3.5, "A man peels an onion."),
        (4.0, 6.0, "He cuts it."),
    ]
