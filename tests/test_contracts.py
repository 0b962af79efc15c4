"""Rules that hold between files: layers, what dvc.yaml calls a dependency, recipes, the documented
environment."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.params_file import recipes
from stages.ingest import examination
from stages.lib.video import loader
from stages.params import load_params, parse_params
from tests.support.checkout import ROOT

#: Imported by verbs, and never determines a result: the values of parameters are dependencies by
#: themselves, and where and how a stage runs, what is recorded and what is shown change no out.
NO_RESULT = ("stages/params/", "stages/runtime/", "stages/tracking/", "stages/pages/", "stages/errors.py")
#: Where the code lies that may be a dependency.
RESULT = re.compile(
    r"stages/(domain/\w+|lib/\w+|corpus|ingest|synthesize|base|sft|difficulty|grpo|baselines|evaluate|summary)(/\w+\.py)?"
)
#: Folders of which these stages read little: they name files.
BY_FILE = {"corpus", "ingest", "summary"}


def module_file(name: str) -> Path | None:
    path = ROOT / Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists():
            return candidate
    return None


@cache
def imports(path: Path) -> frozenset[Path]:
    """Files of this project that a file imports, at its top or inside its functions."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        for name in names:
            if name.split(".")[0] in ("stages", "flows") and (file := module_file(name)) is not None:
                found.add(file)
    return frozenset(found)


def closure(path: Path) -> set[str]:
    """Files that determine the result of the verb at ``path``: itself and what it imports, cut at
    what never determines a result."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        name = file.relative_to(ROOT).as_posix()
        if file in seen or name.startswith(NO_RESULT):
            continue
        seen.add(file)
        waiting += imports(file)
    return {file.relative_to(ROOT).as_posix() for file in seen if file.name != "__init__.py" or holds_code(file)}


def holds_code(file: Path) -> bool:
    return len(ast.parse(file.read_text(encoding="utf-8")).body) > 1


def dvc_stages() -> dict[str, dict[str, Any]]:
    raw = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: stage.get("do", stage) for name, stage in raw.items()}


def code_deps(stage: dict[str, Any]) -> list[str]:
    return [dep for dep in stage["deps"] if dep.startswith("stages/")]


def files_under(dep: str) -> set[str]:
    path = ROOT / dep
    files = [path] if path.is_file() else path.rglob("*.py")
    return {f.relative_to(ROOT).as_posix() for f in files if f.name != "__init__.py" or holds_code(f)}


@pytest.mark.parametrize("name", list(dvc_stages()))
def test_deps_cover_every_module_that_determines_a_result(name: str) -> None:
    stage = dvc_stages()[name]
    verb = re.match(r"python -m stages (\w+)", stage["cmd"])
    assert verb is not None
    needed = closure(ROOT / "stages" / verb[1] / "stage.py")
    named = set().union(*(files_under(dep) for dep in code_deps(stage)))
    assert needed <= named, f"{name}: dvc.yaml lacks {sorted(needed - named)}"


@pytest.mark.parametrize("name", list(dvc_stages()))
def test_no_dep_is_there_for_nothing(name: str) -> None:
    stage = dvc_stages()[name]
    needed = closure(ROOT / "stages" / name / "stage.py")
    for dep in code_deps(stage):
        assert files_under(dep) & needed, f"{name}: {dep} holds nothing that the stage imports"
    superfluous = set().union(*(files_under(dep) for dep in code_deps(stage))) - needed
    assert len(superfluous) <= 4, (
        f"{name}: an edit of {sorted(superfluous)} would run it again for nothing; name files, or split the folder"
    )
    assert name in BY_FILE or all((ROOT / dep).is_dir() for dep in code_deps(stage)), (
        f"{name}: name folders, as the other stages do"
    )


@pytest.mark.parametrize("name", list(dvc_stages()))
def test_a_dep_lies_where_code_changes_results(name: str) -> None:
    for dep in code_deps(dvc_stages()[name]):
        assert RESULT.fullmatch(dep), f"{name}: {dep} lies outside of stages/<verb>, stages/domain/* and stages/lib/*"


def test_what_is_kept_between_runs_is_keyed_by_all_of_its_code() -> None:
    """The journal of ingest and the frames on disk belong to the code that made them."""
    for owner, modules in ((examination, examination.EXAMINING), (loader, loader.READING)):
        file = Path(owner.__file__ or "")
        video = {name for name in closure(file) if name.startswith("stages/lib/video/")}
        keyed = {Path(module.__file__ or "").relative_to(ROOT).as_posix() for module in modules}
        assert keyed == video - {file.relative_to(ROOT).as_posix()}


@pytest.mark.parametrize("path", sorted((ROOT / "infra/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    assert load_params(path).recipe == path.stem


@pytest.mark.parametrize("path", sorted((ROOT / "infra/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_has_a_small_version(path: Path) -> None:
    whole, small = load_params(path), parse_params(yaml.safe_load(recipes.smoke_version(ROOT, path.stem)))
    assert small.model.kind == "tiny"
    assert small.ingest.source == "data/corpus"
    assert small.candidate == whole.candidate
    assert small.evaluation.of == whole.evaluation.of
    for name, row in small.rows.items():
        given = whole.rows[name]
        assert (row.init, row.tasks, row.schedule) == (given.init, given.tasks, given.schedule)
        assert (row.freeze, row.lora) == (given.freeze, given.lora)
        assert row.steps <= 100
        assert not row.gradient_checkpointing
    for name, rollouts in small.grpo.items():
        kept = whole.grpo[name]
        assert (rollouts.loss, rollouts.scale_rewards, rollouts.importance) == (
            kept.loss,
            kept.scale_rewards,
            kept.importance,
        )
    assert small.rewards == whole.rewards.model_copy(update={"min_thinking_words": 0}), (
        "so small a model thinks in a few words"
    )


def test_the_root_params_are_the_tiny_recipe() -> None:
    assert (ROOT / "params.yaml").read_text() == (ROOT / "infra/recipes/tiny.yaml").read_text()


def test_loading_params_imports_no_heavy_library() -> None:
    heavy = ("torch", "mlflow", "prefect", "dvc", "scipy")
    code = (
        f"import stages.params, sys; stages.params.load_params(sys.argv[1]); print([m for m in {heavy} if m in"
        " sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "params.yaml")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_importing_the_command_line_imports_no_heavy_library() -> None:
    code = (
        "import flows.cli.main, sys; print([m for m in ('torch','mlflow','prefect','dvc','transformers','numpy') if m"
        " in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_environment_variable_is_documented() -> None:
    used = set()
    for folder in ("flows", "stages"):
        for path in (ROOT / folder).rglob("*.py"):
            used |= set(re.findall(r"\bVIDBRIDGE_[A-Z_]+\b", path.read_text(encoding="utf-8")))
    documented = set(re.findall(r"\bVIDBRIDGE_[A-Z_]+\b", (ROOT / ".env.example").read_text(encoding="utf-8")))
    assert used <= documented, f".env.example lacks {sorted(used - documented)}"
