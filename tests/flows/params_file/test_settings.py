"""Single values of params.yaml: written in place, checked first, refused where edits would be
lost."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from flows.cli import run
from flows.errors import UsageError
from flows.params_file import recipes
from flows.params_file.settings import with_settings
from stages.params import ParamsError, parse_params
from stages.runtime.bounded_yaml import parse_yaml
from tests.support.checkout import ROOT

TEXT = (ROOT / "infra/recipes/smoke.yaml").read_text(encoding="utf-8")


def changed_lines(text: str) -> list[str]:
    return [now.strip() for was, now in zip(TEXT.splitlines(), text.splitlines(), strict=True) if was != now]


def test_only_the_value_changes() -> None:
    settings = [
        "grpo.general.steps=50",
        "seed=3",
        "grpo.bridge.lora={rank: 8, alpha: 16, dropout: 0, targets: attention}",
    ]
    settings += ["ingest.annotations='my file.json'", "grpo.general.learning_rate=1e-5"]
    changed = with_settings(TEXT, settings)
    table, lines = parse_yaml(changed, "params.yaml"), changed_lines(changed)
    assert len(lines) == 5
    assert "lora: {rank: 8, alpha: 16, dropout: 0, targets: attention}" in lines
    assert (table["seed"], table["grpo"]["general"]["steps"], table["ingest"]["annotations"]) == (3, 50, "my file.json")
    assert table["grpo"]["general"]["learning_rate"] == 1e-5, "a number, and no text"
    assert parse_yaml(with_settings("a:\nb: 1  # kept\n", ["a=2", "b=[3]"], "x"), "x") == {"a": 2, "b": [3]}
    assert with_settings("a:\nb: 1  # kept\n", ["a=2", "b=[3]"]) == "a: 2\nb: [3]  # kept\n"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("grpo.general.stepz=5", "grpo.general.stepz is not in params.yaml (grpo.general: it has init, "),
        ("seed.more=5", "seed.more is not in params.yaml (seed: it is a single value)"),
        ("grpo.general.steps", "'grpo.general.steps' is not NAME=VALUE"),
        ("grpo.general=5", "grpo.general is a table of several lines"),
        ("recipe=a: b", "its value is not YAML of one line"),
        ("recipe=a # b", "its value is not YAML of one line"),
        ("recipe=a, b: 1", "its value is not YAML of one line"),
        ("recipe=a\nseed: 1", "its value is not YAML of one line"),
    ],
)
def test_what_names_no_value_is_refused(setting: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        with_settings(TEXT, [setting])
    assert said in str(refused.value)


def test_a_change_is_checked_shown_and_never_costs_edits(project: Path) -> None:
    path = project / "params.yaml"
    before = path.read_text()
    with pytest.raises(ParamsError, match=r"grpo\.general\.steps"):
        recipes.change(project, None, ["grpo.general.steps=0"])
    assert path.read_text() == before
    told = recipes.change(project, "smoke", ["grpo.general.steps=9", "seed=5"])
    assert "+seed: 5\n" in told
    params = parse_params(parse_yaml(path.read_text(), "params.yaml"))
    assert (params.recipe, params.seed, params.grpo["general"].steps) == ("smoke", 5, 9)
    assert recipes.change(project, None, ["seed=5"]) == "", "it says so already"
    with pytest.raises(UsageError, match="edits that no commit and no recipe keeps"):
        recipes.change(project, None, ["seed=6"])
    subprocess.run(["git", "commit", "-qam", "seed 5"], cwd=project, check=True)
    assert recipes.change(project, None, ["seed=6"]).endswith("-seed: 5\n+seed: 6\n \n corpus:\n   train_clips: 48\n")


def test_a_dry_run_changes_nothing(project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    for given in ({"settings": ["seed=5"]}, {"seed": 5}, {"recipe": "smoke"}):
        with pytest.raises(UsageError, match=r"--dry-run: changes nothing"):
            run.run(dry_run=True, **given)
    assert (project / "params.yaml").read_bytes() == before
