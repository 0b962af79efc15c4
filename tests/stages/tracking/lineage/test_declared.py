"""Stages as ``dvc.yaml`` declares them: read here without DVC, and equal to DVC's own reading."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stages.tracking.lineage.declared import declared_stage
from stages.tracking.lineage.uri import TrackingError, quiet
from tests.support.checkout import ROOT


@pytest.mark.parametrize("recipe", ["tiny", "vidbridge-r1"])
def test_dvc_reads_the_same(tmp_path: Path, recipe: str) -> None:
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    shutil.copyfile(ROOT / f"infra/recipes/{recipe}.yaml", tmp_path / "params.yaml")
    quiet()
    from dvc.dependency import ParamsDependency
    from dvc.repo import Repo

    Repo.init(str(tmp_path), no_scm=True).close()
    with Repo(str(tmp_path)) as repo:
        stages = {stage.name: stage for stage in repo.index.stages}
    assert {name.partition("@")[0] for name in stages} >= {"ingest", "synthesize", "grpo", "evaluate"}
    for name, stage in stages.items():
        found = declared_stage(tmp_path, name)
        assert found.cmd == stage.cmd
        assert set(found.deps) == {dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)}
        values = {dep.def_path: dep.read_params() for dep in stage.deps if isinstance(dep, ParamsDependency)}
        assert found.params == values, name


PIPELINE = """
stages:
  train:
    foreach: ${rows}
    do:
      cmd: python -m stages train ${key} ${item.init}
      deps: ["${source}", stages/train.py, "models/${item.init}"]
      params: [seed, "rows.${key}", {more.yaml: [a.b]}, {all.yaml: null}]
  scores:
    foreach: [base, one]
    do: {cmd: "python -m stages scores ${item}"}
  sum: {cmd: python -m stages sum}
"""
PARAMS = "seed: 3\nsource: data/mine\nrows: {one: {init: base, steps: 2}, two: {init: one, steps: 4}}\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "more.yaml").write_text("a: {b: 5, c: 6}\n")
    (tmp_path / "all.yaml").write_text("x.y: 7\n")
    return tmp_path


def test_tables_and_lists_are_resolved(project: Path) -> None:
    found = declared_stage(project, "train@two")
    assert found.cmd == "python -m stages train two one"
    assert found.deps == ("data/mine", "stages/train.py", "models/one")
    assert found.params == {
        "params.yaml": {"seed": 3, "rows.two": {"init": "one", "steps": 4}},
        "more.yaml": {"a.b": 5},
        "all.yaml": {"x.y": 7},
    }
    assert declared_stage(project, "scores@one").cmd == "python -m stages scores one"
    assert declared_stage(project, "sum").cmd == "python -m stages sum"


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("polish", "", "", r"stages: 'polish' is not among them \(train, scores, sum\); add it"),
        ("train@three", "", "", r"stages.train.foreach: 'three' is not among them \(one, two\); name one of these"),
        ("train", "", "", r"stages.train.foreach: '' is not among them \(one, two\)"),
        ("sum@one", "", "", r"stages.sum: has no foreach, hence no sum@one; name sum"),
        ("train@one", "seed,", "sed,", r"stages.train.params: 'sed' is not in params.yaml; add it there"),
        ("train@one", "[a.b]", "[a.d]", r"stages.train.params: 'a.d' is not in more.yaml; add it there"),
        ("train@one", "${item.init}", "${item.start}", r"stages.train.cmd: 'item.start' is not in params.yaml"),
        (
            "train@one",
            "${key} ${item.init}",
            "${item}",
            r"stages.train.cmd: \$\{item\} is dict, but is used inside a text",
        ),
        ("train@one", "stages/train.py", "{a: b}", r"stages.train.deps: \{'a': 'b'\} is not a path"),
        ("sum", "stages sum}", "stages sum, wdir: sub}", r"stages.sum.wdir: is not read here"),
        (
            "sum",
            "\nstages:",
            "vars: [more.yaml]\nstages:",
            r"dvc.yaml: vars: is not read here; move its values to params.yaml",
        ),
        ("scores@one", "[base, one]", "7", r"stages.scores.foreach: is neither a table nor a list of names"),
        ("sum", "\nstages:", "stages: [", r"dvc.yaml: not YAML: line"),
    ],
)
def test_what_cannot_be_read_names_the_place(project: Path, name: str, old: str, new: str, message: str) -> None:
    assert old in PIPELINE
    (project / "dvc.yaml").write_text(PIPELINE.replace(old, new, 1))
    with pytest.raises(TrackingError, match=message):
        declared_stage(project, name)


def test_outside_a_project_the_remedy_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"dvc\.yaml: no such file; run from the project's folder"):
        declared_stage(tmp_path, "sum")
