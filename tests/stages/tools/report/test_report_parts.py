"""Parts of the report: the graph, lists of replies, curves, gains."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from stages.domain.core.records import Score
from stages.domain.statistics.metrics import SampledResult
from stages.lib.evaluation.results import ControlledResult, PairedGain, PolicyScores, RowGain, SampledScores
from stages.lib.rows.jsonl import write_json
from stages.params import load_params, parse_params
from stages.tools.report import curves, dag, replies, scores, watching
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


def test_a_watched_row_is_drawn_beside_its_reward_with_what_was_kept(tmp_path: Path) -> None:
    table = yaml.safe_load((ROOT / "params.yaml").read_text())
    sampled = {"replies": 4, "temperature": 1.0}
    watch = {"every": 15, "samples_per_task": 4, "max_new_tokens": 8, "sampled": sampled, "keep": "best"}
    table["grpo"]["general"]["watch"] = watch
    params = parse_params(table)
    plots = tmp_path / "reports/plots"
    plots.mkdir(parents=True)
    (plots / "grpo.csv").write_text(
        "row,step,reward,reward/mcqa,watch/greedy,watch/greedy/mcqa,watch/sampled,watch/pass\n"
        "bridge,1,0.1,,,,,\n"
        "general,0,,,0.25,0.5,0.2,0.4\n"
        "general,1,0.3,0.2,,,,\n"
        "general,15,0.4,0.3,0.75,1.0,0.5,0.9\n"
        "general,30,0.5,0.3,0.5,0.5,0.5,0.9\n"
    )
    (row,) = watching.of_watching(tmp_path, params)
    assert (row["name"], row["kept"], row["rewarded"]) == ("general", None, True)
    assert row["keys"] == [("c1", "greedy"), ("c2", "sampled, mean"), ("c4", "sampled, best of all")]
    assert [figure["title"] for figure in row["figures"]][:2] == ["mean over tasks", "dark_event_infer"]
    mean, mcqa = (row["figures"][number]["svg"] for number in (0, 3))
    assert "step 15, greedy: 0.750" in mean
    assert "step 15, greedy: 1.000" in mcqa
    assert mean.count("<polyline") == 5, "the reward twice, as it is and smoothed, and three curves"
    assert mcqa.count("<polyline") == 3
    kept = {"keep": "best", "step": 15, "score": 0.75, "last_step": 30, "last_score": 0.5}
    write_json(tmp_path / "models/general/summary.json", {"kept": kept})
    (row,) = watching.of_watching(tmp_path, params)
    assert row["kept"] == kept
    assert "kept: step 15" in row["figures"][0]["svg"]


def test_sampled_replies_stand_below_the_greedy_ones() -> None:
    params = load_params(ROOT / "params.yaml")
    ends = {"low": 0.0, "high": 1.0}
    task = ControlledResult(
        mean=0.5, **ends, samples=2, unjudged=0, format=1, native=1, blank=0, shuffled=0, blank_high=0, shuffled_high=0
    )
    drawn = SampledResult(
        mean=0.25, **ends, spread=0.1, samples=2, replies=8, unjudged=0, pass_at={4: {"mean": 0.75, **ends}}
    )
    several = SampledScores(replies=4, temperature=0.7, mean=0.25, spread=0.1, pass_at={4: 0.75}, tasks={"mcqa": drawn})
    table = {"row": "x", "digest": "d", "split": "test", "samples": 2, "mean": 0.5, "blank_mean": 0, "format": 1}
    plain = PolicyScores(**table, shuffled_mean=0, tasks={"mcqa": task})
    tables = dict.fromkeys(params.evaluation.of, plain) | {"general": plain.model_copy(update={"sampled": several})}
    rows = scores.sampled_rows(params, tables, ["mcqa"])
    assert [(row["name"], row["kind"], row["mean"], row["cells"][0]["mean"]) for row in rows] == [
        ("general", "greedy", 0.5, 0.5),
        ("general", "mean of 4 at temperature 0.7", 0.25, 0.25),
        ("general", "pass@4", 0.75, 0.75),
    ]
    # As stages write it: without a key where nothing was sampled, and with numbers as keys.
    assert "sampled" not in plain.model_dump(mode="json", exclude_none=True)
    written = tables["general"].model_dump_json(exclude_none=True)
    assert PolicyScores.model_validate_json(written) == tables["general"]


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
