"""Rules for every command: help on narrow terminals, verbosity, the project's .env, completion in a
shell.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from flows.cli import complete
from flows.cli.main import app
from flows.console import show
from flows.errors import UsageError
from flows.processes import dotenv, verbosity
from flows.repro import reproduce
from stages.runtime.paths import DATABASE
from tests.support.checkout import ROOT
from tests.support.processes.commands import commands


def groups() -> Iterator[tuple[str, typer.core.TyperGroup]]:
    whole = typer.main.get_command(app)
    assert isinstance(whole, typer.core.TyperGroup)
    yield "vidbridge", whole
    for name, command in whole.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            yield f"vidbridge {name}", command


def test_no_line_of_help_is_cut_at_80_columns() -> None:
    listed = []
    for name, group in groups():
        lines = group.get_help(group.context_class(group, info_name=name, terminal_width=80)).splitlines()
        listed += lines[lines.index("Commands:") + 1 :]
    assert len(listed) > 30
    assert [
        line for line in listed if line.rstrip().endswith("...") or len(line) > 80 or line.startswith("     ")
    ] == []


def test_quiet_leaves_errors_and_what_was_asked_for(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        ["-q", "recipe", "list"],
        ["-q", "recipe", "show", "smoke"],
        ["-q", "recipe", "show", "nope"],
        ["-q", "-v", "recipe", "list"],
    ]
    listed, shown, wrong, both = commands(project, [({}, command) for command in asked])
    assert (listed.returncode, listed.said) == (0, "")
    assert shown.stdout == (ROOT / "infra/recipes/smoke.yaml").read_text()
    assert wrong.stderr.startswith("error: recipe: 'nope' does not exist")
    assert both.returncode == 2
    assert "contradict each other" in both.stderr
    monkeypatch.setattr(verbosity, "_level", "quiet")
    show.console().print("a table")
    show.document({"x": float("nan"), "name": "\u202e https://bob:secret@host"})
    assert json.loads(capsys.readouterr().out) == {"x": None, "name": "\u202e https://bob:***@host"}


def test_verbose_tells_what_dvc_says(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbosity, "_level", "verbose")
    lines: list[str] = []
    assert reproduce.reproduce(done, "base", lines.append).outcome == "unchanged"
    assert [line for line in lines if " DEBUG: " in line]


def test_the_env_file_of_a_project_is_read_and_overrides_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VIDBRIDGE_PROJECT", "VIDBRIDGE_WRITER_URL", "VIDBRIDGE_RANKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VIDBRIDGE_JUDGE_URL", "http://given")
    assert dotenv.load() is None
    file = project / ".env"
    file.write_text(
        '# ours\nexport VIDBRIDGE_JUDGE_URL=http://file\nVIDBRIDGE_WRITER_URL="${VIDBRIDGE_JUDGE_URL}/v1"  #'
        " twice\nVIDBRIDGE_RANKS=2\n"
    )
    monkeypatch.chdir(project / ".dvc")
    with monkeypatch.context() as patch:
        patch.setenv("VIDBRIDGE_WRITER_URL", "")  # taken back afterwards
        patch.delenv("VIDBRIDGE_WRITER_URL")
        patch.setenv("VIDBRIDGE_RANKS", "")
        patch.delenv("VIDBRIDGE_RANKS")
        assert dotenv.load() == file
        found = [os.environ[f"VIDBRIDGE_{name}"] for name in ("JUDGE_URL", "WRITER_URL", "RANKS")]
        assert found == ["http://given", "http://given/v1", "2"]
    (project.parent / ".env").write_text("VIDBRIDGE_RANKS=3\n")
    with monkeypatch.context() as patch:
        patch.chdir(project.parent)
        assert dotenv.load() is None, "no project, so nobody's settings"
    file.write_text("VIDBRIDGE_RANKS=2\nnot a setting\n")
    with pytest.raises(UsageError, match=r"\.env: line 2: not NAME=value"):
        dotenv.load()


def test_a_shell_completes_what_the_project_has(done: Path) -> None:
    def pressed(words: str) -> tuple[dict[str, str], list[str]]:
        count = str(len(words.split(" ")) - 1)
        return {"_VIDBRIDGE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count}, []

    asked = [
        "vidbridge plan grpo@",
        "vidbridge recipe use vidbridge",
        "vidbridge run --set grpo.general.st",
        "vidbridge sc",
    ]
    stages, recipes, settings, names = commands(done, [pressed(words) for words in asked])
    assert stages.stdout.split() == ["grpo@bridge", "grpo@general"]
    assert recipes.stdout.split() == ["vidbridge-r1", "vidbridge-r1-staged"]
    assert settings.stdout.split() == ["grpo.general.steps=", "grpo.general.staleness="]
    assert names.stdout.split() == ["score", "scratch"]


def test_completion_knows_benchmarks_and_says_nothing_where_nothing_is(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert complete.benchmarks("v") == ["video-mme", "vdc"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (project / DATABASE.parent).mkdir()
    (project / DATABASE).write_text("no database")
    (project / "params.yaml").write_text("a: [")
    assert complete.versions("c") == ["champion", "candidate"]
    assert complete.stages("grpo") == []
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIDBRIDGE_PROJECT", raising=False)
    assert complete.stages("") == []
    assert "smoke" in complete.recipes("s")
