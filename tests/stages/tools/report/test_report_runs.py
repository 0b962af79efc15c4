"""Runs behind the results, in the report: what they cost, their versions and machines."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from stages.params import load_params
from stages.tools.report import cost
from stages.tools.report.environment import environment
from stages.tracking.lineage.lockfile import read_lock
from stages.tracking.runs.history import Cost, PastRun, grid_costs, latest_runs
from stages.tracking.runs.run import ablation_run, stage_run
from stages.tracking.runs.store import experiment_id, open_client
from tests.support.pages import Elements


def test_costs_and_versions_come_from_the_runs(page: str, project: Path) -> None:
    runs = latest_runs(open_client(project), project)
    assert runs["corpus"].cost.gpu_h == 0, "this stage had no GPU"
    assert runs["corpus"].versions["mlflow"] in page
    assert runs["corpus"].machine["processor"] in Elements(page).text
    text = Elements(page).text
    for name in ("corpus", "summary"):
        assert re.search(rf"{name}\s*\d+ (s|min)", text), name
    # dvc.lock has three stages; the graph has no others, and the folder around two outs makes one
    # edge.
    assert page.count('class="box ') == 2 * 3
    assert re.findall(r"<title>(\w+ → \w+)</title>", page) == ["corpus → ingest", "ingest → summary"] * 2


def test_runs_of_an_ablation_and_of_earlier_work_are_not_what_the_results_took(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, before = load_params(), latest_runs(open_client(project), project)["corpus"]
    with ablation_run(params, project, "c" * 40) as grid, monkeypatch.context() as patched:
        assert grid.run_id is not None
        patched.setenv("VIDBRIDGE_PIPELINE_RUN", grid.run_id)
        with stage_run("corpus", params):
            pass
    client = open_client(project)
    assert latest_runs(client, project)["corpus"] == before
    # A later grid is estimated from them.
    of_grid = grid_costs(client, project, params.recipe)
    assert {stage: len(costs) for stage, costs in of_grid.items()} == {"corpus": 1}
    assert of_grid["corpus"][0] != before.cost
    assert grid_costs(client, project, "another") == {}
    digests = [read_lock(project)["ingest"].digest, "of other videos"]
    for digest in digests:
        with stage_run("ingest", params) as run:
            run.tag({"stage_digest": digest})
    found = latest_runs(open_client(project), project)["ingest"]
    made, later = (
        client.search_runs([experiment_id(client, project)], f"tags.`vidbridge.stage_digest` = '{digest}'")[0]
        for digest in digests
    )
    assert found.started.timestamp() == made.info.start_time / 1000 < later.info.start_time / 1000


def test_what_a_judge_cost_is_in_the_table(project: Path) -> None:
    params = load_params(project / "params.yaml")
    with stage_run("evaluate@general", params) as run:
        run.summary(
            {
                "judge/questions": 900,
                "judge/cache_hits": 100,
                "judge/prompt_tokens": 120_000,
                "judge/completion_tokens": 4000,
            }
        )
    runs = latest_runs(open_client(project), project)
    assert cost.request_rows(params, runs) == [
        {
            "stage": "evaluate@general",
            "who": "judge",
            "questions": 900,
            "cache_hits": 100,
            "requests": 0,
            "prompt_tokens": 120_000,
            "completion_tokens": 4000,
        }
    ]


def run_of(commit: str, version: str) -> PastRun:
    return PastRun(
        Cost(7200, 3600, 2.0, 4.0),
        datetime(2026, 1, 2, tzinfo=UTC),
        {},
        commit,
        False,
        {},
        {"torch": version},
        ("H200",) * 2,
    )


def test_runs_that_differ_say_which_they_were(project: Path) -> None:
    params = load_params(project / "params.yaml")
    runs = {
        "base": run_of("a" * 40, "1"),
        "sft@cold-start": run_of("a" * 40, "2"),
        "grpo@bridge": run_of("b" * 40, "2"),
    }
    about = environment(project, params, runs, datetime(2026, 1, 3, tzinfo=UTC))
    assert [(variant["facts"], variant["stages"]) for variant in about["versions"]] == [
        ({"torch": "2"}, ["grpo@bridge", "sft@cold-start"]),
        ({"torch": "1"}, ["base"]),
    ]
    assert [(variant["facts"]["commit"], variant["stages"]) for variant in about["made_on"]] == [
        ("a" * 12, ["base", "sft@cold-start"]),
        ("b" * 12, ["grpo@bridge"]),
    ]
    assert about["made_on"][0]["facts"]["GPUs"] == "2 x H200"
    whole = cost.total(params, runs)
    assert whole is not None
    assert (whole["wall"], whole["cpu_h"], whole["gpu_h"]) == ("6 h 00 min", 3.0, 12.0)
