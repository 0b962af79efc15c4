"""Units of a grid through real DVC, on stages that take no time, in two lanes of a seed. With real
trainings: `test_ablation_slow`.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from flows.ablation import unit as units
from flows.ablation.lanes import Lanes, ablation_folder
from flows.ablation.schedule import Unit
from flows.ablation.unit import GridRun
from flows.errors import StageFailed
from stages.lib.rows.jsonl import write_rows
from stages.params import load_params
from tests.support.builders import clip
from tests.support.checkout import ROOT
from tests.support.projects.repository import commit, git

PIPELINE = """
stages:
  baselines:
    cmd: cp -r rows data && mkdir -p scores && cp -r rows scores/baselines
    params: [seed]
    outs: [data, scores/baselines]
    meta: {kind: data, timeout_s: 600}
  sft:
    foreach: ${sft}
    do:
      cmd: mkdir -p models/${key} && echo ${seed} ${key} $VIDBRIDGE_SCRATCH > models/${key}/weights
      deps: [data]
      outs: ['models/${key}']
      meta: {kind: train, timeout_s: 600}
  grpo:
    foreach: ${grpo}
    do:
      cmd: mkdir -p models/${key} && cat models/${item.init}/weights > models/${key}/weights && test ${key} != caption
      deps: ['models/${item.init}']
      outs: ['models/${key}']
      meta: {kind: train, timeout_s: 600}
  evaluate:
    foreach: ${evaluation.of}
    do:
      cmd: mkdir -p scores && cp -r models/${item} scores/${item}
      deps: ['models/${item}']
      outs: ['scores/${item}']
      meta: {kind: evaluate, timeout_s: 600}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GridRun:
    root = tmp_path / "project"
    (root / "stages").mkdir(parents=True)
    (root / "stages/__init__.py").touch()
    (root / "params.yaml").write_text((ROOT / "infra/recipes/smoke.yaml").read_text())
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / ".gitignore").write_text(".vidbridge\ndata\nmodels\nscores\n")
    (root / ".dvc").mkdir()
    (root / ".dvc/config").touch()
    (root / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    write_rows(root / "rows/clips/manifest.jsonl", [clip(1, split="test")])
    git(root, "init", "--quiet", "--initial-branch=main")
    commit(root, "start")
    params = load_params(root / "params.yaml")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    # No stage here saves a model that could be registered.
    monkeypatch.setattr(units, "_registered", lambda *_: None)
    return GridRun(params, Lanes(root, ablation_folder(root, params), git(root, "rev-parse", "HEAD").strip()), {})


def test_a_second_lane_takes_the_start_of_the_first(run: GridRun) -> None:
    start, qa, caption = Unit(2, "start", "cold-start"), Unit(2, "variant", "qa"), Unit(2, "variant", "caption")
    told, scratch = threading.Event(), run.lanes.prepare(2, 1) / ".vidbridge/scratch"
    for stage in ("sft-cold-start", "grpo-qa", "grpo-caption"):
        (scratch / stage).mkdir(parents=True)
    with disable_run_logger():
        assert units._run(run, start, 1, told) == 3
        assert not run.is_done(qa)
        assert units._run(run, qa, 2, told) == 2, "training and evaluation; all else is checked out"
        with pytest.raises(StageFailed, match="grpo@caption"):
            units._run(run, caption, 1, told)
    assert run.is_done(qa)
    assert not run.is_done(caption)
    assert "grpo@caption" in run.log(caption).read_text()
    assert [folder.name for folder in scratch.iterdir()] == ["grpo-caption"], "from which it resumes"
    weights = (run.results.of(2, "cold-start") / "weights").read_text().split()
    assert weights == ["2", "cold-start", str(scratch)]
    assert (run.results.of(2, "qa") / "weights").read_text().split() == weights
    lanes = [run.lanes.grid / name for name in ("seed-2", "seed-2.2")]
    assert [(lane / "models/qa").exists() for lane in lanes] == [False, True]
    assert run.results.clips(2) == {}
    lock = lanes[0] / "dvc.lock"
    whole = lock.read_bytes()
    lock.write_bytes(b"stages:\n")  # killed while it was written
    Lanes(run.lanes.root, run.lanes.grid, run.lanes.commit).prepare(2, 1)
    assert lock.read_bytes() == whole


def test_a_start_with_other_parameters_ends_the_table_of_the_old_ones(
    run: GridRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, qa = Unit(1, "start", "cold-start"), Unit(1, "variant", "qa")
    project = run.lanes.prepare(1, 1)
    for policy in ("baselines", "cold-start", "qa"):
        (project / "scores" / policy).mkdir(parents=True)
    write_rows(project / "data/clips/manifest.jsonl", [clip(1, split="test")])
    units._kept(run, qa, project)
    units._kept(run, start, project)
    assert run.is_done(qa), "with the same parameters it still counts"
    other = run.params.model_copy(update={"recipe": "other"})
    units._kept(GridRun(other, run.lanes, {}), start, project)
    assert run.results.identity(1, "qa") is None


def test_every_lane_has_the_users_number_of_workers_or_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.ablation import flow

    monkeypatch.delenv("VIDBRIDGE_WORKERS", raising=False)
    monkeypatch.setattr(flow, "cores", lambda: 8)
    assert [flow._environment(jobs)["VIDBRIDGE_WORKERS"] for jobs in (1, 3, 16)] == ["8", "2", "1"]
    monkeypatch.setenv("VIDBRIDGE_WORKERS", "5")
    assert flow._environment(2) == {"VIDBRIDGE_RANKS": "1"}
