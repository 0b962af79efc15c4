"""Recipes: complete ``params.yaml`` files under ``infra/recipes``. Using one copies it over; git shows the difference."""

from __future__ import annotations

import difflib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from flows.errors import UsageError
from stages.params import Params, load_params

FOLDER = Path("infra/recipes")
PARAMS = Path("params.yaml")


@dataclass(frozen=True)
class Recipe:
    name: str
    path: Path
    #: The comment that opens the file, without its marks.
    about: str
    #: Whether ``params.yaml`` is this recipe, byte for byte.
    in_use: bool


def recipes(root: Path) -> tuple[Recipe, ...]:
    """Every recipe, by name."""
    current = (root / PARAMS).read_bytes() if (root / PARAMS).is_file() else b""
    found = sorted((root / FOLDER).glob("*.yaml"))
    return tuple(Recipe(path.stem, path, _about(path), path.read_bytes() == current) for path in found)


def _about(path: Path) -> str:
    words = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words.append(line.lstrip("# ").strip())
    return " ".join(words)


def recipe(root: Path, name: str) -> Recipe:
    """
    Raises:
        UsageError: there is no such recipe.
    """
    every = recipes(root)
    for one in every:
        if one.name == name:
            return one
    names = ", ".join(one.name for one in every) or f"none in {root / FOLDER}"
    raise UsageError(f"recipe: {name!r} does not exist; choose one of {names}")


def difference(root: Path, name: str) -> str:
    """What `use` would change in ``params.yaml``, as a unified diff; empty when nothing."""
    new = recipe(root, name).path
    old = (root / PARAMS).read_text(encoding="utf-8") if (root / PARAMS).is_file() else ""
    lines = difflib.unified_diff(
        old.splitlines(keepends=True),
        new.read_text(encoding="utf-8").splitlines(keepends=True),
        str(PARAMS),
        str(FOLDER / new.name),
    )
    return "".join(lines)


def use(root: Path, name: str, force: bool = False) -> Params:
    """Copy a recipe over ``params.yaml`` and return what it says. A recipe that does not load is never copied.

    Raises:
        UsageError: no such recipe, or ``params.yaml`` holds edits that neither a commit nor a recipe keeps, and ``force`` is not set.
        ParamsError: the recipe breaks a rule.
    """
    chosen = recipe(root, name)
    params = load_params(chosen.path)
    if not force and _holds_edits(root):
        raise UsageError(
            f"{PARAMS}: has edits that no commit and no recipe keeps; commit them, or save them as a recipe"
            f" (cp {PARAMS} {FOLDER}/NAME.yaml), or overwrite them: vidbridge recipe use {name} --force"
        )
    partial = root / (str(PARAMS) + ".new")
    partial.write_bytes(chosen.path.read_bytes())
    partial.replace(root / PARAMS)
    return params


def _holds_edits(root: Path) -> bool:
    path = root / PARAMS
    if not path.is_file() or any(one.in_use for one in recipes(root)):
        return False
    committed = subprocess.run(["git", "-C", str(root), "show", f"HEAD:./{PARAMS}"], capture_output=True, check=False)
    return committed.returncode != 0 or committed.stdout != path.read_bytes()
