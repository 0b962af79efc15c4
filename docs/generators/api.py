"""A page of the API reference for each package below the packages that ``mkdocs.yml`` names
(``extra.api``)."""

from __future__ import annotations

import ast
from pathlib import Path

from generators.markdown import joined


def packages(root: Path, tops: list[str]) -> list[str]:
    """Every package at or below ``tops`` that holds modules, by its dotted name.

    Raises:
        ValueError: one of ``tops`` is not a package.
    """
    found = []
    for top in tops:
        folder = root / Path(*top.split("."))
        if not (folder / "__init__.py").is_file():
            raise ValueError(f"mkdocs.yml: extra.api: {top!r} is not a package; name packages such as stages.domain")
        inits = sorted(folder.rglob("__init__.py"))
        found += [".".join(init.parent.relative_to(root).parts) for init in inits if modules(init.parent)]
    return found


def modules(folder: Path) -> list[str]:
    """Names of a package's modules, without ``__init__`` and private ones."""
    return sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))


def page_path(package: str) -> str:
    return f"reference/api/{package.removeprefix('stages.')}.md"


def page(root: Path, package: str) -> str:
    """The page of one package: its docstring, then each module for mkdocstrings to fill in."""
    folder = root / Path(*package.split("."))
    about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    lines = [f"# {package}", "", about, ""]
    for module in modules(folder):
        lines += [f"::: {package}.{module}", ""]
    return joined(lines)
