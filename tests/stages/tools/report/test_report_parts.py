"""Parts of the report: the graph, lists of replies, curves, gains."""

from __future__ import annotations

import re

import yaml

from stages.domain.core.records import Score
from stages.lib.evaluation.results import PairedGain, RowGain
from stages.tools.report import curves, dag, replies, scores
from tests.support.checkout import ROOT


def test_the_longest_chain_runs_along_the_top_and_scores_stand_side_by_side() -> None:
    deps = {
        "base": ["data"],
        "sft@a": ["models/base/final"],
        "grpo@b": ["models/a/final"],
        "evaluate@a": ["models/a/final"],
    }
    deps |= {
        "evaluate@b": ["models/b/final"],
        "evaluate@base": ["models/base"],
        "summary": ["scores", "data"],
        "synthesize": [],
    }
    outs = {"synthesize": ["data/samples"], "base": ["models/base"], "sft@a": ["models/a"], "grpo@b": ["models/b"]}
    outs |= {f"evaluate@{row}": [f"scores/{row}"] for row in ("base", "a", "b")} | {"summary": ["reports"]}
    edges = dag.edges_of(deps, outs)
    assert ("synthesize", "summary") not in edges, "it follows from the others"
    assert ("base", "evaluate@base") in edges
    where = dag.places(list(deps), edges)
    assert [where[name] for name in ("synthesize", "base", "sft@a", "grpo@b", "evaluate@b", "summary")] == [
        (n, 0) for n in range(6)
    ]
    assert (where["evaluate@a"], where["evaluate@base"]) == ((4, 1), (4, 2))
    assert len(set(where.values())) == len(where)


def test_the_colours_of_stages_are_the_kinds_of_dvc_yaml() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {name: stage.get("do", stage)["meta"]["kind"] for name, stage in stages.items()} == dag.KINDS


def test_the_page_holds_what_leads_each_list() -> None:
    task_of = {f"{task}/{n}": task for task in ("caption", "mcqa") for n in range(40)}
    values: dict[str, dict[str, float | None]] = {
        "old": {name: int(name.split("/")[1]) / 40 for name in task_of},
        "new": {name: 1 - int(name.split("/")[1]) / 40 for name in task_of} | {"mcqa/0": None},
    }
    counts = replies.changes(values, task_of)
    assert counts["old>new"]["caption"] == {"better": 20, "worse": 19, "same": 1}
    assert counts["new>old"]["caption"] == {"better": 19, "worse": 20, "same": 1}
    assert counts["old>new"]["mcqa"] == {"better": 19, "worse": 19, "same": 1}
    order = replies.leading(values, task_of, "old", "new")
    assert set(order[:4]) == {"caption/0", "caption/39", "mcqa/1", "mcqa/39"}, (
        "the greatest changes of each task come first"
    )
    assert "mcqa/0" not in order
    assert len(order) == len(set(order)) == 4 * replies.LEADING


def test_pictures_have_a_limit_and_equal_ones_are_held_once() -> None:
    large = "x" * (replies.PICTURE_BYTES // 2)
    strips, shown = replies._with_pictures(
        ["a", "b", "c", "d"], lambda name: {"a": "p", "b": "p", "c": large, "d": large + "y"}[name]
    )
    assert strips == ["p", large]
    assert shown == [("a", 0), ("b", 0), ("c", 1)]


def test_the_ends_of_a_smoothed_curve_are_those_of_the_curve() -> None:
    points = [(float(n), float(n % 2)) for n in range(100)]
    smooth = curves.smoothed(points)
    assert (smooth[0], smooth[-1]) == (points[0], points[-1])
    assert max(abs(y - 0.5) for _, y in smooth[10:-10]) < 0.1


def test_gains_are_drawn_on_one_scale_and_coloured_by_their_interval() -> None:
    task = PairedGain(mean=-0.1, low=-0.4, high=0.2, p_value=0.5, won=1, lost=2, tied=3)
    gains = {"b - a": RowGain(mean=0.2, low=0.1, high=0.3, p_value=1e-15, won=2, lost=1, tied=3, tasks={"mcqa": task})}
    (row,) = scores.gain_rows(gains, ["mcqa"])
    assert [cell["kind"] for cell in row["cells"]] == ["good", ""]
    assert [cell["p"] for cell in row["cells"]] == ["p < 0.001", "p 0.500"]
    zeros = {re.search(r'class="zero" x1="([\d.]+)"', cell["bar"])[1] for cell in row["cells"]}  # type: ignore[index]
    assert zeros == {"48"}


def test_a_score_without_a_verdict_is_not_a_zero() -> None:
    said = replies.reply(Score(sample_id="s", task="caption", reply="no form", format_ok=False, reason="HTTP 503"))
    assert said["value"] is None
    assert (said["answer"], said["text"], said["reason"]) == (None, "no form", "HTTP 503")


def test_gauges_by_task_are_drawn_with_a_line_per_task_or_pair() -> None:
    points = [(1.0, 0.5), (2.0, 0.25)]
    measured = {
        "reward/mcqa": points,
        "dead_groups/mcqa": points,
        "dead_groups/caption": points,
        "stop_after_first/caption": points,
        "live_share": points,
        "gradient_cosine/vision/caption-mcqa": [(1.0, -0.1)],
        "gradient_cosine/vision/mcqa-mcqa": [(1.0, 0.3)],
    }
    found = curves.of_each_task({"bridge": measured, "plain": {"reward/mcqa": points}})
    assert [section["title"] for section in found] == ["bridge: by task", "bridge: cosines between gradients of tasks"]
    gauges, cosines = found
    assert gauges["rows"] == ["caption", "mcqa"]
    assert [figure["title"] for figure in gauges["figures"]] == [
        "share of dead groups",
        "probability that an answer ends behind its first event",
    ]
    assert (cosines["rows"], [figure["title"] for figure in cosines["figures"]]) == (
        ["caption-mcqa", "mcqa-mcqa"],
        ["vision"],
    )
    assert cosines["figures"][0]["svg"].count("<polyline") + cosines["figures"][0]["svg"].count("<path") >= 2
