"""What a stage was made from, read off the lock."""

from __future__ import annotations

from stages.tracking.lineage.lockfile import StageRecord
from stages.tracking.lineage.pipeline import Pipeline


def record(name: str, deps: dict[str, str], outs: dict[str, str]) -> StageRecord:
    return StageRecord(name=name, cmd=f"python -m stages {name}", deps=deps, params={}, outs=outs)


def test_folders_of_code_are_no_data() -> None:
    clips = record(
        "ingest", {"videos": "1.dir", "stages/ingest": "2.dir", "code/ingest.txt": "3"}, {"data/clips": "4.dir"}
    )
    model = record("sft@a", {"data/clips": "4.dir", "stages/lib/video": "5.dir"}, {"models/a": "6.dir"})
    pipeline = Pipeline({"ingest": clips, "sft@a": model}, frozenset(), {})
    assert pipeline.data(model) == {"data/clips": "4.dir", "videos": "1.dir"}
