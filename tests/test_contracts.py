"""Rules that hold between files: layers, what dvc.yaml calls a dependency, recipes, the documented environment."""

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

from flows import recipes
from stages.params import load_params, parse_params

ROOT = Path(__file__).parent.parent

#: Modules that a verb imports and that do not determine its result, with the reason. A change of theirs re-runs nothing.
NOT_A_DEPENDENCY = {
    "stages/params.py": "the values it reads are dependencies by themselves (params)",
    "stages/layout.py": "names of paths, which dvc.yaml holds too",
    "stages/entry.py": "how an error is printed",
    "stages/errors.py": "the class that errors have in common",
    "stages/plain.py": "how foreign text is printed",
    "stages/scratch.py": "what a run resumes from",
    "stages/lease.py": "who may use a folder that several hosts share",
    "stages/liveness.py": "which process something belongs to",
    "stages/workers.py": "how work is spread over processes; a test holds that results do not depend on it",
    "stages/learning/distributed.py": "where training runs",
    "stages/learning/rollout_engine.py": "who generates rollouts; log-probabilities are those of the model that is trained",
    "stages/judging/place.py": "where the judge is",
    "stages/judging/client.py": "how often a judge is tried; an answer that did not come is no verdict",
    "stages/pages.py": "how a page is filled in",
    "stages/rollout_pages.py": "a page that a person looks at while a stage works; no out holds it",
    "stages/judging/cache.py": "answers that came before, by all they depend on",
    "stages/video/store.py": "frames that were decoded before, by all they depend on",
}
#: Whole packages of that kind.
NOT_DEPENDENCIES = ("stages/tracking/",)


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
    """What determines the result of the verb at ``path``: itself and what it imports, less what is named above."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        name = file.relative_to(ROOT).as_posix()
        if file in seen or name in NOT_A_DEPENDENCY or name.startswith(NOT_DEPENDENCIES):
            continue
        seen.add(file)
        waiting += imports(file)
    return {file.relative_to(ROOT).as_posix() for file in seen if file.name != "__init__.py"}


def dvc_stages() -> dict[str, dict[str, Any]]:
    raw = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: stage.get("do", stage) for name, stage in raw.items()}


@pytest.mark.parametrize("name", list(dvc_stages()))
def test_dvc_yaml_names_every_module_that_determines_a_result(name: str) -> None:
    stage = dvc_stages()[name]
    verb = re.match(r"python -m stages (\w+)", stage["cmd"])
    assert verb is not None
    needed = closure(ROOT / "stages" / f"{verb[1]}.py")
    named = {dep for dep in stage["deps"] if dep.startswith("stages/")}
    assert named == needed, f"{name}: missing {sorted(needed - named)}, superfluous {sorted(named - needed)}"


def test_what_is_not_a_dependency_exists() -> None:
    for name in NOT_A_DEPENDENCY:
        assert (ROOT / name).exists(), f"{name} is gone; take it out of NOT_A_DEPENDENCY"


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
        assert (rollouts.loss, rollouts.scale_rewards, rollouts.importance) == (kept.loss, kept.scale_rewards, kept.importance)
    assert small.rewards == whole.rewards.model_copy(update={"min_thinking_words": 0}), "so small a model thinks in a few words"


def test_the_root_params_are_the_tiny_recipe() -> None:
    assert (ROOT / "params.yaml").read_text() == (ROOT / "infra/recipes/tiny.yaml").read_text()


def test_loading_params_imports_no_heavy_library() -> None:
    heavy = ("torch", "mlflow", "prefect", "dvc", "scipy")
    code = f"import stages.params, sys; stages.params.load_params(sys.argv[1]); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, str(ROOT / "params.yaml")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_command_line_imports_no_heavy_library() -> None:
    code = (
        "import flows.cli, sys; print([m for m in ('torch','mlflow','prefect','dvc','transformers','numpy') if m in sys.modules])"
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
