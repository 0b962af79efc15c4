"""Watched rows: what is refused when parameters load, and the small version of a recipe."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from flows.params_file import recipes
from stages.params import ParamsError, parse_params
from tests.support.checkout import ROOT
from tests.support.training.tiny import grpo_row, sft_row

WATCH: dict[str, Any] = {"every": 2, "samples_per_task": 4, "max_new_tokens": 8, "sampled": None, "keep": "best"}


@pytest.mark.parametrize(
    ("row", "watch", "refused"),
    [
        ({}, {}, None),
        ({"save_steps": 1}, {}, None),
        ({"steps": 7}, {}, None),
        ({"save_steps": 4}, {"keep": "last"}, None),
        ({}, {"every": 6}, r"watch\.every: 6 of 6 steps measures the start and the end alone; write at most 5"),
        ({"steps": 1, "warmup_steps": 0}, {}, r"watch\.every: 2 of 1 steps .*; write watch: null"),
        (
            {"save_steps": 4, "steps": 12},
            {"every": 6},
            r"watch\.keep: 'best' chooses among checkpoints, .* save_steps 4;"
            r" write save_steps 3, or watch\.every 8, or keep last",
        ),
        (
            {"save_steps": 5},
            {"every": 2},
            r"not saved with save_steps 5; write save_steps 2, or watch\.every 5, or keep",
        ),
        ({"save_steps": 6}, {"every": 2}, r"not saved with save_steps 6; write save_steps 2, or keep last"),
        ({}, {"sampled": {"replies": 1, "temperature": 1.0}}, r"greater than or equal to 2"),
    ],
)
def test_a_watch_sees_what_is_saved(row: dict[str, Any], watch: dict[str, Any], refused: str | None) -> None:
    if refused is None:
        assert grpo_row(**row, watch=WATCH | watch).watch is not None
        return
    with pytest.raises(ValidationError, match=refused):
        grpo_row(**row, watch=WATCH | watch)


def tiny() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    return table


def test_an_sft_row_is_watched_by_the_scores_of_evaluation() -> None:
    table = tiny()
    row = table["sft"]["cold-start"]
    row["watch"] = WATCH | {"every": 550, "judge": table["judge"], "rewards": table["rewards"], "own_tasks": None}
    assert parse_params(table).sft["cold-start"].watch is not None
    row["watch"]["judge"] = table["judge"] | {"full_share": 0.9}
    with pytest.raises(ParamsError, match=r"sft\.cold-start\.watch\.judge: differs from `judge`.*write the same there"):
        parse_params(table)
    row["watch"] |= {"judge": table["judge"], "own_tasks": "0f"}
    with pytest.raises(
        ParamsError, match=r"watch\.own_tasks: '0f', and no task that it trains is the project's own.*; write null"
    ):
        parse_params(table)
    with pytest.raises(ValidationError, match=r"judge\n  Field required"):
        sft_row(watch=WATCH)


def test_the_variants_of_a_grid_are_watched_only_if_it_says_so() -> None:
    table = tiny()
    table["grpo"]["general"]["watch"] = WATCH | {"every": 15}
    assert {row.watch for row in parse_params(table).variants.values()} == {None}, "24 steps, saved at the end alone"
    table["ablation"]["variants"]["all"]["changes"] |= {"save_steps": 8, "watch": WATCH | {"every": 8}}
    (watched,) = (name for name, row in parse_params(table).variants.items() if row.watch is not None)
    assert watched == "all"


def test_the_small_version_of_a_watched_recipe_is_watched(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    table = tiny()
    sampled = {"replies": 64, "temperature": 0.7}
    table["recipe"] = "mine"
    table["grpo"]["general"]["watch"] = WATCH | {"every": 15, "sampled": sampled}
    own = {"judge": table["judge"], "rewards": table["rewards"], "own_tasks": None}
    table["sft"]["cold-start"]["watch"] = WATCH | own | {"every": 550}
    table["evaluation"]["sampled"] = sampled
    folder = tmp_path / "infra/recipes"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# Mine.\n" + yaml.safe_dump(table))
    small = parse_params(yaml.safe_load(recipes.smoke_version(tmp_path, "mine")))
    assert small.evaluation.sampled is not None
    assert (small.evaluation.sampled.replies, small.evaluation.sampled.temperature) == (2, 0.7)
    for row in (small.grpo["general"], small.sft["cold-start"]):
        assert row.watch is not None
        assert (row.watch.every, row.watch.keep) == (row.save_steps, "best")
    assert small.grpo["bridge"].watch is None
