"""Recordings named by a pattern, and names that look as if clips were of one."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from pydantic import ValidationError

from stages.domain.core.records import Split
from stages.ingest.curation.grouping import alike, grouped, warning
from stages.ingest.split import assign_splits
from stages.lib.annotations.annotation import Annotation
from stages.params import IngestParams, load_params
from tests.support.checkout import ROOT

PARAMS = load_params(ROOT / "params.yaml").ingest


def rows(*videos: str) -> list[Annotation]:
    return [Annotation(video=video) for video in videos]


def test_a_pattern_names_the_recording_of_rows_that_name_none() -> None:
    given = [*rows("tv/news_000010_000020.mp4", "tv/news_000020_000030.mp4", "other.mp4")]
    given.append(Annotation(video="tv/news_000030_000040.mp4", source="mine"))
    found = grouped(given, r"^(.*)_\d{6}_\d{6}[.]")
    assert [row.source for row in found] == ["tv/news", "tv/news", None, "mine"]
    assert grouped(given, None) == given
    splits, conflicts = assign_splits(found, PARAMS, 7)
    assert conflicts == []
    assert len({splits[row.clip_id] for row in found if row.source == "tv/news"}) == 1


@pytest.mark.parametrize(
    ("pattern", "said"), [("(", "is not a regular expression"), (".*", "has 0 groups"), ("(a)(b)", "has 2 groups")]
)
def test_a_pattern_that_names_nothing_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        IngestParams.model_validate(PARAMS.model_dump() | {"source_pattern": pattern})


def test_near_duplicates_without_looking_are_refused() -> None:
    with pytest.raises(ValidationError, match="set curate: true"):
        IngestParams.model_validate(PARAMS.model_dump() | {"near_duplicates": "drop"})


def found(videos: Iterable[str], *splits: Split) -> list[tuple[str, int]]:
    given = rows(*videos)
    return [
        (group.name, group.clips)
        for group in alike(given, {row.clip_id: split for row, split in zip(given, splits, strict=True)})
    ]


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        ("news_000010_000020.mp4", "news_000020_000030.mp4", "news"),
        ("a/game-00:01:00-00:02:00.mp4", "a/game-00:02:00-00:03:00.mp4", "a/game"),
        ("show_s01e02.part1.mkv", "show_s01e02.part2.mkv", "show_s01e02"),
        ("cam (1).mp4", "cam (2).mp4", "cam"),
        ("v_QOlSCBRmfWY 1.5 - 2.5s.mp4", "v_QOlSCBRmfWY 3 - 4s.mp4", "v_QOlSCBRmfWY"),
    ],
)
def test_names_that_differ_by_a_number_at_their_end_look_alike(one: str, other: str, name: str) -> None:
    assert found([one, other], "train", "test") == [(name, 2)]
    assert found([one, other], "train", "train") == [], "they are not split"


def test_other_names_do_not_look_alike() -> None:
    names = ["show_s01e02.mp4", "show_s01e03.mp4", "a/1.mp4", "a/2.mp4", "x_1.mp4", "y_1.mp4", "left.mp4", "right.mp4"]
    assert found(names, *["train", "test"] * 4) == []


def test_a_source_settles_it_and_the_warning_names_the_remedy() -> None:
    given = [Annotation(video=f"news_{n}.mp4", source=f"s{n}") for n in range(2)]
    assert alike(given, {"news_0": "train", "news_1": "test"}) == []
    given = rows("news_0.mp4", "news_1.mp4")
    said = warning(alike(given, {"news_0": "train", "news_1": "test"}))
    assert said.startswith("names look alike and are in several splits: 'news' (2 clips in train, test). If these are")
    assert "ingest.source_pattern" in said
    assert warning([]) == ""
