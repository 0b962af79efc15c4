"""Acceptance of code changes for all stages at once, and its refusal where anything else
differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from flows.errors import UsageError
from flows.project.accept import ACCEPTED, accept_all
from stages.tracking.lineage.lockfile import read_lock
from tests.support.projects.flow import states, why
from tests.support.projects.repository import commit


def move_code(root: Path) -> None:
    """Change a project as an upgrade does: code moves into folders, some of it changes, a command
    is spelt differently.
    """
    (root / "stages/grpo").mkdir(parents=True)
    (root / "learning.py").rename(root / "stages/grpo/train.py")
    (root / "stages/grpo/advantages.py").write_text("# new\n")
    (root / "work.py").write_text((root / "work.py").read_text() + "# moved\n")
    text = (root / "dvc.yaml").read_text()
    (root / "dvc.yaml").write_text(
        text.replace("learning.py", "stages/grpo").replace("python work.py baselines", "python work.py  baselines")
    )


def test_an_upgrade_is_carried_over_and_a_plan_then_names_changed_files(done: Path) -> None:
    before = {name: record.outs for name, record in read_lock(done).items()}
    move_code(done)
    assert "will run" in states(done).values()
    accept_all(done, "layout 0.2, no behaviour changed")
    assert set(states(done).values()) == {"up to date"}
    assert {name: record.outs for name, record in read_lock(done).items()} == before
    rows = [json.loads(line) for line in (done / ACCEPTED).read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["corpus", "ingest", "baselines", "grpo@bridge", "grpo@general"], (
        "in the order of the graph"
    )
    assert rows[-1]["changes"] == ["dep stages/grpo is new", "dep learning.py is gone"]
    with pytest.raises(UsageError, match="no stage changed"):
        accept_all(done, "again")
    commit(done, "accepted")
    (done / "stages/grpo/advantages.py").write_text("rate = 3\n")
    (done / "stages/grpo/controls.py").write_text("\n")
    assert why(done, "grpo@bridge") == ("dep stages/grpo changed (advantages.py, controls.py)",)


def change_parameter(root: Path) -> str:
    table = yaml.safe_load((root / "params.yaml").read_text())
    was = table["grpo"]["general"]["learning_rate"]
    table["grpo"]["general"]["learning_rate"] = 0.5
    (root / "params.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    return f"grpo@general: param grpo.general.learning_rate: {was} -> 0.5"


def change_out(root: Path) -> str:
    path = root / "models/bridge/final/config.json"
    path.unlink()  # a hard link, maybe
    path.write_text("edited")
    return "grpo@bridge: out models/bridge is not what dvc.lock names"


def remove_out(root: Path) -> str:
    shutil.rmtree(root / "scores/base")
    return "evaluate@base: out scores/base is missing"


def change_source(root: Path) -> str:
    text = (root / "dvc.yaml").read_text()
    (root / "labels.csv").write_text("a\n")
    (root / "dvc.yaml").write_text(
        text.replace("deps: [data/clips]\n    params: [model]", "deps: [data/clips, labels.csv]\n    params: [model]")
    )
    return "base: data labels.csv is a new dependency"


def add_stage(root: Path) -> str:
    with (root / "dvc.yaml").open("a") as file:
        file.write("  extra:\n    cmd: python work.py data extra extra\n    deps: [work.py]\n    outs: [extra]\n")
    return "extra: never ran"


def test_where_more_than_code_changed_each_stage_is_named_and_nothing_accepted(done: Path) -> None:
    move_code(done)
    faults = [change(done) for change in (change_parameter, change_out, remove_out, change_source, add_stage)]
    lock = (done / "dvc.lock").read_bytes()
    with pytest.raises(UsageError) as refused:
        accept_all(done, "layout 0.2")
    for fault in faults:
        assert f"\n  {fault}" in str(refused.value)
    assert (done / "dvc.lock").read_bytes() == lock
    assert not (done / ACCEPTED).exists()
    with pytest.raises(UsageError, match=r"--why: is empty"):
        accept_all(done, " ")
