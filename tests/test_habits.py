"""How tests are written: each file can be read, run and moved by itself."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.processes.workers import TOGETHER

TESTS = ROOT / "tests"
FILES = sorted(TESTS.rglob("*.py"))
#: A longer one is about more than one subject.
MOST_LINES = 400


def imported(file: Path) -> set[str]:
    """Modules of this folder that a file imports, at its top or inside its functions; ``.`` for a
    relative import."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if not node.level else {"."}
    own = {path.stem for path in FILES} - {"__init__"}
    return {name for name in found if name == "." or name.startswith("tests.") or name.split(".")[0] in own}


def test_what_tests_share_stands_in_tests_support() -> None:
    elsewhere = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in FILES
        for name in imported(file)
        if not name.startswith("tests.support.")
    }
    assert elsewhere == set(), "a test module imports a test module, or a helper by another name than tests.support"


def test_no_file_of_tests_is_about_everything() -> None:
    lines = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}, (
        f"split it by subject: over {MOST_LINES} lines"
    )


@pytest.mark.parametrize("form", [r"sys\.path\b", r"__file__\)(\.resolve\(\))?\.parent(s|\.parent)"])
def test_no_file_of_tests_depends_on_its_place(form: str) -> None:
    """Modules come from the root, which pytest knows; files of the checkout are named from
    ``tests.support.checkout.ROOT``."""
    found = [
        f"{name}:{number}: {line.strip()}"
        for file in FILES
        if (name := str(file.relative_to(ROOT))) not in ("tests/support/checkout.py", "tests/test_habits.py")
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(form, line)
    ]
    assert found == [], "import from tests.support, and begin paths at its ROOT"


def test_files_that_share_a_server_are_there() -> None:
    """A file that was moved would start a server of its own, and nobody would notice."""
    assert [name for files in TOGETHER.values() for name in files if not (ROOT / name).is_file()] == []
