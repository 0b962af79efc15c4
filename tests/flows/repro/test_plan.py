"""The plan against real DVC projects: which stages are out of date, and why."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from flows.errors import DvcError, UsageError
from flows.processes import environment as project
from flows.project import accept
from flows.repro import reproduce
from flows.repro.plan import make_plan, stage_graph
from stages.params import load_params
from tests.support.projects.flow import states, why
from tests.support.projects.repository import edit


def test_at_first_everything_runs_in_an_order_that_respects_dependencies(project: Path) -> None:
    plan = make_plan(project)
    assert {step.why for step in plan.to_run} == {("never ran",)}
    assert len(plan.to_run) == len(plan.steps) == 12
    seen: set[str] = set()
    for step in plan.steps:
        assert set(step.upstream) <= seen
        seen.add(step.name)
    assert {name: set(up) for name, up in stage_graph(project).items()} == {
        step.name: set(step.upstream) for step in plan.steps
    }
    general = next(step for step in plan.steps if step.name == "grpo@general")
    assert general.upstream == ("grpo@bridge",)
    assert (general.meta.kind, general.meta.retries, general.meta.timeout_s) == ("train", 1, 120)


def test_after_a_run_nothing_is_left_to_do(done: Path) -> None:
    assert make_plan(done).empty


def test_what_several_stages_read_is_hashed_once(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.dependency.base import Dependency

    hashed: Counter[str] = Counter()
    own = Dependency.get_hash
    monkeypatch.setattr(Dependency, "get_hash", lambda dep: hashed.update([str(dep)]) or own(dep))
    assert make_plan(done).empty
    assert {"data/clips", "models/base", "work.py"} <= set(hashed)
    assert set(hashed.values()) == {1}


def test_a_parameter_re_runs_its_stage_and_what_follows_and_the_reason_names_it(done: Path) -> None:
    text = (done / "params.yaml").read_text()
    before = load_params(done / "params.yaml").grpo["general"].learning_rate
    head, general = text.split("  general:", 1)
    changed, found = re.subn(r"learning_rate: \S+", "learning_rate: 3.0e-4", general, count=1)
    assert (found, before != 3.0e-4) == (1, True)
    (done / "params.yaml").write_text(head + "  general:" + changed)
    assert [step.name for step in make_plan(done).to_run] == ["grpo@general", "evaluate@general", "summary"]
    assert why(done, "grpo@general") == (f"params grpo.general.learning_rate: {before} -> 0.0003",)
    assert why(done, "evaluate@general") == ("models/general will change (grpo@general)",)
    assert why(done, "evaluate@base") == ()


def test_code_that_is_a_dep_re_runs_and_code_that_is_none_does_not(done: Path) -> None:
    (done / "unrelated.py").write_text("# a comment\n")
    assert make_plan(done).empty
    edit(done / "learning.py", "rate = 1", "rate = 2")
    assert "dep learning.py changed" in why(done, "grpo@bridge")
    assert states(done)["sft@cold-start"] == "up to date"


def test_outputs_that_the_cache_holds_are_restored_and_nothing_runs(done: Path) -> None:
    shutil.rmtree(done / "models/cold-start")
    shutil.rmtree(done / "scores")
    plan = make_plan(done)
    assert plan.to_run == ()
    assert {step.name for step in plan.to_restore} >= {"sft@cold-start", "evaluate@base", "baselines"}
    reproduce.restore(done, plan.to_restore)
    assert make_plan(done).empty
    assert (done / "models/cold-start/final/config.json").read_text() == "cold-start"


def test_an_output_changed_by_hand_and_one_that_is_nowhere_are_made_again(done: Path) -> None:
    (done / "models/bridge/final/config.json").chmod(0o644)
    (done / "models/bridge/final/config.json").write_text("edited")
    assert why(done, "grpo@bridge") == ("models/bridge was changed by hand",)
    shutil.rmtree(done / ".dvc/cache")
    assert why(done, "corpus") == ("data/corpus is neither in the cache nor in the remote 'local'",)


def test_only_what_the_target_needs_is_planned(project: Path, tmp_path: Path) -> None:
    assert list(states(project, "sft@cold-start")) == ["corpus", "ingest", "base", "sft@cold-start"]
    with pytest.raises(
        UsageError, match=r"'evaluate' is a group of 4; name one of them: evaluate@base, .*evaluate@general"
    ):
        states(project, "evaluate")
    videos = tmp_path / "videos"
    videos.mkdir()
    edit(project / "params.yaml", "source: data/corpus", f"source: {videos}")
    assert "corpus" not in states(project)


def test_the_command_of_a_stage_counts(done: Path) -> None:
    edit(done / "dvc.yaml", "work.py baselines baselines", "work.py  baselines baselines")
    assert why(done, "baselines") == ("command changed",)


def test_an_empty_table_of_rows_is_no_error(project: Path) -> None:
    text = (project / "dvc.yaml").read_text()
    (project / "dvc.yaml").write_text(
        text[: text.index("  grpo:")] + "  grpo: {foreach: [], do: {cmd: python work.py}}\n"
    )
    assert "sft@cold-start" in states(project, "sft@cold-start")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kind: evaluate", "kind: compute", "stages.baselines.meta.kind"),
        ("stages:", "stages: [", "dvc.yaml"),
        (
            "deps: [data/clips]\n    params: [model]",
            "deps: [models/general]\n    params: [model]",
            "both a dependency and an output",
        ),
    ],
)
def test_a_bad_pipeline_is_one_message(project: Path, old: str, new: str, said: str) -> None:
    edit(project / "dvc.yaml", old, new)
    with pytest.raises(DvcError) as caught:
        make_plan(project)
    assert said in str(caught.value)


def test_an_unknown_target_names_the_known_ones(project: Path) -> None:
    with pytest.raises(UsageError, match=r"'grpo@nope' is not a stage .*grpo@bridge"):
        make_plan(project, "grpo@nope")


def test_accept_makes_a_changed_stage_stand(done: Path) -> None:
    edit(done / "learning.py", "rate = 1", "rate = 1  # a comment")
    accept.accept(done, "grpo@bridge", "only a comment")
    assert why(done, "grpo@general") == ("dep learning.py changed",)
    accept.accept(done, "grpo@general", "only a comment")
    assert make_plan(done).empty
    first, second = (json.loads(line) for line in (done / "accepted.jsonl").read_text().splitlines())
    assert (first["stage"], first["why"], first["changes"]) == (
        "grpo@bridge",
        "only a comment",
        ["dep learning.py changed"],
    )
    assert second["stage"] == "grpo@general"
    with pytest.raises(UsageError, match="up to date"):
        accept.accept(done, "grpo@bridge", "again")
    with pytest.raises(UsageError, match="--why"):
        accept.accept(done, "grpo@bridge", " ")


def test_what_dvc_remembers_lies_in_the_project_and_its_locks_where_a_plain_dvc_looks(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of the file system may be read-only, and `dvc` by hand is still locked out."""
    from dvc.repo import Repo

    with Repo(str(done)) as plain:
        lock, elsewhere = plain.lock.lockfile, Path(plain.site_cache_dir)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", project.defaults(done)["DVC_SITE_CACHE_DIR"])
    with Repo(str(done)) as ours:
        assert Path(ours.site_cache_dir).is_relative_to(done / ".vidbridge")
        assert ours.lock.lockfile == lock
        assert Path(lock).is_relative_to(done / ".dvc/tmp")
    assert not elsewhere.is_relative_to(done)
