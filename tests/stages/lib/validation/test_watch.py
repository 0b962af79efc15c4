"""The held-out subset of a watched training, its batches on several processes, and its metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.domain.core.records import Score
from stages.errors import InputError
from stages.lib.rows.jsonl import write_json, write_rows
from stages.lib.training.watching import Ranks
from stages.lib.validation.watch import Scored, _dealt, metrics, validation_samples
from tests.support.builders import SAMPLES
from tests.support.training.tiny import grpo_row
from tests.support.training.watched import settings


def test_the_subset_is_of_the_validation_split_and_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    counts = {"train": {"caption": 9, "mcqa": 9}, "validation": {"caption": 9, "mcqa": 0}, "test": {"mcqa": 9}}

    def write(split: str, task: str, count: int) -> None:
        rows = (SAMPLES[task].model_copy(update={"sample_id": f"{split}-{n}", "split": split}) for n in range(count))
        write_rows(tmp_path / f"data/samples/{split}/{task}.jsonl", rows)

    for split, tasks in counts.items():
        for task, count in tasks.items():
            write(split, task, count)
    summary = tmp_path / "data/samples/summary.json"
    write_json(summary, {"samples": counts})
    row = grpo_row(tasks={"caption": 1, "mcqa": 2}, watch=settings())
    assert row.watch is not None
    with pytest.raises(
        InputError,
        match=r"grpo\.bridge\.watch: the validation split has no sample of mcqa; .*, or write watch: null",
    ):
        validation_samples("grpo.bridge", row, row.watch, 7)
    write("validation", "mcqa", 2)
    counts["validation"]["mcqa"] = 2
    write_json(summary, {"samples": counts})
    chosen = validation_samples("grpo.bridge", row, row.watch, 7)
    assert [sample.task for sample in chosen] == ["caption"] * 3 + ["mcqa"] * 2
    assert {sample.split for sample in chosen} == {"validation"}
    assert chosen == validation_samples("grpo.bridge", row, row.watch, 7)
    assert chosen != validation_samples("grpo.bridge", row, row.watch, 8)
    # A task that is not trained is not asked.
    alone = grpo_row(tasks={"caption": 1, "mcqa": 0}, watch=settings())
    assert {sample.task for sample in validation_samples("grpo.bridge", alone, row.watch, 7)} == {"caption"}


@pytest.mark.parametrize(("count", "size", "ranks"), [(7, 2, 1), (7, 2, 2), (7, 2, 3), (1, 4, 3), (6, 2, 3)])
def test_every_process_passes_through_the_model_as_often_and_no_reply_counts_twice(
    count: int, size: int, ranks: int
) -> None:
    dealt = [_dealt(count, size, Ranks(index, ranks)) for index in range(ranks)]
    assert len({len(each) for each in dealt}) == 1
    wanted = [batch for each in dealt for batch, counts in each if counts]
    assert sorted(wanted) == [batch for batch, _ in _dealt(count, size, Ranks(0, 1))]
    assert sorted(position for batch in wanted for position in batch) == list(range(count))


def test_metrics_are_means_of_what_is_known() -> None:
    def scored(position: int, number: int | None, value: float | None) -> Scored:
        task = "caption" if position < 2 else "mcqa"
        return Scored(
            position, number, Score(sample_id=f"s{position}", task=task, reply="", format_ok=position > 0, value=value)
        )

    found = metrics(
        [
            *(scored(0, number, value) for number, value in ((None, 0.5), (0, 0.2), (1, 0.6))),
            *(scored(1, number, value) for number, value in ((None, 0.7), (0, 0.4), (1, None))),
            *(scored(2, number, value) for number, value in ((None, None), (0, 0.0), (1, 1.0))),
        ],
        2,
    )
    assert found == pytest.approx(
        {
            "watch/format": 2 / 3,
            "watch/unjudged": 2,
            "watch/greedy/caption": 0.6,
            "watch/sampled": (0.4 + 0.5) / 2,
            "watch/sampled/caption": (0.4 + 0.4) / 2,
            "watch/sampled/mcqa": 0.5,
            "watch/spread": (0.1 + 0.5) / 2,
            "watch/spread/caption": (0.2 + 0.0) / 2,
            "watch/spread/mcqa": 0.5,
            "watch/pass": (0.6 + 1.0) / 2,
            "watch/pass/caption": 0.6,
            "watch/pass/mcqa": 1.0,
        }
    ), "no mean over tasks without mcqa; the second caption has one judged reply of two"
