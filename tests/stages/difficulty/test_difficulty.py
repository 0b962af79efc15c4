"""``difficulty@X`` before ``grpo@X``: the rules between the two rows, and, slow, the real thing on
a tiny model with real DVC."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.domain.core.records import Sample
from stages.domain.rl.difficulty import Rolled
from stages.lib.rows.jsonl import read_rows
from stages.params import Params, ParamsError, load_params, parse_params
from tests.support.checkout import ROOT
from tests.support.projects.repository import commit
from tests.support.projects.smoke import call, make_project, succeed

ROW = {
    "init": "cold-start",
    "rollouts": 4,
    "temperature": 1.0,
    "max_completion_tokens": 24,
    "batch_size": 16,
    "max_samples_per_task": 24,
    "drop_always_right": True,
    "min_spread": 0.05,
}


def smoke(difficulty: dict[str, Any], **samples: str) -> dict[str, Any]:
    """The recipe `smoke` with these difficulty rows; `samples`: where a grpo row reads."""
    table: dict[str, Any] = yaml.safe_load((ROOT / "infra/recipes/smoke.yaml").read_text(encoding="utf-8"))
    table["difficulty"] = difficulty
    for name, folder in samples.items():
        table["grpo"][name]["samples"] = folder
    return table


def test_rows_that_fit() -> None:
    params = parse_params(smoke({"bridge": ROW}, bridge="data/difficulty/bridge"))
    assert params.difficulty["bridge"].rollouts == 4
    assert params.grpo["general"].samples == "data/samples"
    assert load_params(ROOT / "infra/recipes/vidbridge-r1.yaml").difficulty["mixed"].rollouts == 5


@pytest.mark.parametrize(
    ("difficulty", "samples", "said"),
    [
        (
            {},
            {"bridge": "data/difficulty/bridge"},
            r"grpo\.bridge\.samples: 'data/difficulty/bridge' is made by no row .*add difficulty\.br",
        ),
        ({"bridge": ROW}, {}, r"difficulty\.bridge: nothing reads what it keeps .*name data/difficulty/bridge there"),
        (
            {"bridge": ROW},
            {"bridge": "data/difficulty/bridge", "general": "data/difficulty/bridge"},
            (
                r"grpo\.general\.samples: 'data/difficulty/bridge' was chosen for another row's start; name"
                r" data/difficulty/general"
            ),
        ),
        ({"bride": ROW}, {}, r"difficulty\.bride: no grpo row has that name \(grpo: bridge, general\)"),
        (
            {"bridge": {**ROW, "init": "base"}},
            {"bridge": "data/difficulty/bridge"},
            r"difficulty\.bridge\.init: 'base', but grpo\.bridge starts from 'cold-start'; name that",
        ),
        (
            {"bridge": {**ROW, "rollouts": 1}},
            {"bridge": "data/difficulty/bridge"},
            r"difficulty\.bridge\.rollouts: .*\(value 1\)",
        ),
        ({}, {"bridge": "/etc"}, r"grpo\.bridge\.samples: .*\(value '/etc'\)"),
    ],
)
def test_rows_that_do_not_fit(difficulty: dict[str, Any], samples: dict[str, str], said: str) -> None:
    with pytest.raises(ParamsError, match=said):
        parse_params(smoke(difficulty, **samples))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smoke project whose only GRPO row reads filtered samples, run to its end."""
    folder = make_project(tmp_path_factory.mktemp("difficulty") / "project")
    table = smoke({"bridge": ROW}, bridge="data/difficulty/bridge")
    table["grpo"]["bridge"] |= {"tasks": {"mcqa": 1, "caption": 1, "mix_vid_qa": 0}, "steps": 24}
    del table["grpo"]["general"]
    table["evaluation"]["of"] = ["bridge"]
    write(folder, table)
    commit(folder, "a difficulty row")
    succeed(folder, "dvc", "repro", "--quiet", "summary")
    return folder


def write(folder: Path, table: dict[str, Any]) -> Params:
    (folder / "params.yaml").write_text(yaml.safe_dump(table, sort_keys=False), encoding="utf-8")
    return load_params(folder / "params.yaml")


@pytest.mark.slow
def test_what_is_kept_is_what_grpo_reads(project: Path) -> None:
    home = project / "data/difficulty/bridge"
    rolled = read_rows(home / "rollouts.jsonl", Rolled)
    kept = [sample for path in sorted((home / "train").glob("*.jsonl")) for sample in read_rows(path, Sample)]
    assert {sample.sample_id for sample in kept} == {row.sample_id for row in rolled if row.kept}
    assert {path.stem for path in (home / "train").iterdir()} == {"mcqa", "caption"}, (
        "a task of weight 0 is not rolled out"
    )
    for task, count in json.loads((home / "summary.json").read_text())["tasks"].items():
        rows = [row for row in rolled if row.task == task]
        assert len(rows) == 24
        assert [row for row in rows if len(row.scores) != 4] == []
        assert (count["rolled_out"], count["kept"]) == (24, sum(sample.task == task for sample in kept))
        assert count["kept"] + count["always_right"] + count["never_moves"] == 24
    assert 0 < sum(sample.task == "caption" for sample in kept) < 24, "some captions vary and some do not"
    everything = {sample.sample_id: sample for sample in read_rows(project / "data/samples/train/mcqa.jsonl", Sample)}
    assert len(everything) > 24
    assert all(everything[sample.sample_id] == sample for sample in kept if sample.task == "mcqa"), (
        "rows are passed on as they are"
    )

    # 24 steps of 2 prompts show each kept sample of a task once before any twice: GRPO saw no
    # other.
    trained = json.loads((project / "models/bridge/summary.json").read_text())
    shown = {"mcqa": 24, "caption": 24}
    assert trained["tasks"] == shown
    assert trained["distinct_prompts"] == len(kept)
    assert (home / "histogram.png").read_bytes().startswith(b"\x89PNG")
    locked = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    made = {out["path"]: out["md5"] for out in locked["difficulty@bridge"]["outs"]}
    read = {dep["path"]: dep.get("md5") for dep in locked["grpo@bridge"]["deps"]}
    assert read["data/difficulty/bridge"] == made["data/difficulty/bridge"]
    assert "data/samples" not in read


@pytest.mark.slow
def test_the_report_shows_the_histogram(project: Path) -> None:
    succeed(project, "vidbridge", "report")
    page = (project / "report.html").read_text()
    png = base64.b64encode((project / "data/difficulty/bridge/histogram.png").read_bytes()).decode()
    assert page.count(png) == 1
    assert "Before <b>bridge</b>: 4 rollouts a sample of <b>cold-start</b> at temperature 1.0." in page
    assert "difficulty@bridge</td>" in page


@pytest.mark.slow
def test_the_plan_knows_the_stage_and_a_second_run_does_nothing(project: Path) -> None:
    output = succeed(project, "vidbridge", "plan")
    assert "difficulty@bridge" in output
    assert "will run" not in output
    table = yaml.safe_load((project / "params.yaml").read_text())
    table["difficulty"]["bridge"]["min_spread"] = 0.2
    write(project, table)
    planned = {line.split()[0] for line in succeed(project, "vidbridge", "plan").splitlines() if "will run" in line}
    assert planned == {"difficulty@bridge", "grpo@bridge", "evaluate@bridge", "summary"}


@pytest.mark.slow
def test_a_task_that_is_filtered_away_is_an_error_that_says_what_to_do(project: Path) -> None:
    table = yaml.safe_load((project / "params.yaml").read_text())
    # No spread of scores in [0, 1] reaches 2.
    table["difficulty"]["bridge"]["min_spread"] = 2.0
    write(project, table)
    done = call(project, "python", "-m", "stages", "difficulty", "bridge")
    assert done.returncode == 2, "a retry would only roll out all over again"
    assert (
        "difficulty.bridge: of 24 caption samples 0 are always right and 24 never move: none is left for" in done.stderr
    )
    assert "lower min_spread or set drop_always_right: false" in done.stderr
    assert "Traceback" not in done.stderr
