"""`ingest.exclude` is written into a params.yaml in place, and survives a change of recipe."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.errors import UsageError
from flows.params_file import recipes
from stages.params import ExcludedVideo, load_params, parse_params
from stages.runtime.bounded_yaml import parse_yaml
from stages.tools.dataset.excluded import with_excluded
from tests.support.checkout import ROOT

VIDEOS = (
    ExcludedVideo(video="videos/a \u00e9 \U0001f600 'x' \"y\": #.mp4", sha256="0" * 64),
    ExcludedVideo(video="b.mp4", sha256=None),
)


def test_nothing_but_the_list_changes() -> None:
    text = (ROOT / "params.yaml").read_text()
    changed = with_excluded(text, VIDEOS)
    assert parse_params(parse_yaml(changed, "p")).ingest.exclude == VIDEOS
    before, rest = text.split("  exclude: []\n")
    assert changed.startswith(before)
    assert changed.endswith(rest)
    assert with_excluded(changed, ()) == text
    # As a person may write it.
    written = (
        "  exclude:\n    - {video: b.mp4, sha256: null} # in May\n    - video: c.mp4\n      sha256: null\n  # behind\n"
    )
    block = text.replace("  exclude: []\n", written)
    again = with_excluded(block, VIDEOS)
    assert parse_params(parse_yaml(again, "p")).ingest.exclude == VIDEOS
    assert again.endswith("  # behind\n" + rest)


def test_a_removed_video_outlives_a_change_of_recipe(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "infra/recipes", tmp_path / "infra/recipes")
    params = tmp_path / "params.yaml"
    params.write_text(with_excluded((ROOT / "params.yaml").read_text(), VIDEOS))
    assert [one.name for one in recipes.recipes(tmp_path) if one.in_use] == ["tiny"]
    for name, smoke in (("smoke", False), ("tiny", False)):
        # The list does not count as an edit that would be lost.
        assert recipes.use(tmp_path, name, smoke=smoke).ingest.exclude == VIDEOS
        assert load_params(params).ingest.exclude == VIDEOS
    params.write_text(params.read_text().replace("seed: 7", "seed: 8"))
    with pytest.raises(UsageError, match="has edits that no commit and no recipe keeps"):
        recipes.use(tmp_path, "smoke")
