"""The form of error messages: ``FIELD: VALUE is not a …; REMEDY``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.support.checkout import ROOT

BASE = ("stages.errors", "VidbridgeError")
#: Messages that cannot have the form, each with the reason.
OTHER_FORM: dict[str, str] = {}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the program, by its full name."""
    found = {}
    for folder in ("stages", "flows", "benchmarks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


@cache
def names_of(module: str) -> dict[str, tuple[str, str]]:
    """Local name to (module, name), of what a module imports from others of the program and of the
    classes it defines."""
    table = {}
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            table |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.ClassDef):
            table[node.name] = (module, node.name)
    return table


def resolved(module: str, node: ast.expr) -> tuple[str, str] | None:
    """The (module, class) that an expression names, through re-exports."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        above = names_of(module).get(node.value.id)
        found = (".".join(above), node.attr) if above else None
    else:
        found = names_of(module).get(node.id) if isinstance(node, ast.Name) else None
    while found and found[0] in modules() and (further := names_of(found[0]).get(found[1])) not in (None, found):
        found = further
    return found


@cache
def classes() -> dict[tuple[str, str], ast.ClassDef]:
    return {
        (name, n.name): n for name, tree in modules().items() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)
    }


@cache
def is_ours(key: tuple[str, str]) -> bool:
    """Derives from VidbridgeError."""
    node = classes().get(key)
    return key == BASE or (
        node is not None and any((base := resolved(key[0], b)) is not None and is_ours(base) for b in node.bases)
    )


def has_own_message(key: tuple[str, str]) -> bool:
    """The class builds its message itself from the arguments."""
    node = classes()[key]
    if any(isinstance(part, ast.FunctionDef) and part.name == "__init__" for part in node.body):
        return True
    bases = [resolved(key[0], base) for base in node.bases]
    return any(base is not None and base in classes() and has_own_message(base) for base in bases)


def texts(node: ast.expr) -> Iterator[str]:
    """The texts that an argument can be, a value inserted into one as ``{expression}``; nothing
    where it is not written out here."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(
            part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}" for part in node.values
        )  # type: ignore[attr-defined]
    elif isinstance(node, ast.IfExp):
        yield from (*texts(node.body), *texts(node.orelse))


@cache
def messages() -> tuple[tuple[str, int, str], ...]:
    """Module, line and text of every message of our errors."""
    found = []
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                key = resolved(module, node.exc.func)
                if key is not None and is_ours(key) and not has_own_message(key):
                    found += [(module, node.lineno, text) for text in texts(node.exc.args[0])]
    return tuple(found)


def faults(text: str) -> list[str]:
    """Rules that a message breaks. A value that stands for the whole head, or ends the text, may
    carry field or remedy: an error that is passed on with more said about it."""
    head, semicolon, _ = text.rpartition("; ")
    found = []
    if not semicolon and not text.endswith("}"):
        found.append("no remedy after a semicolon")
    if ": " not in (head or text) and not re.fullmatch(r"(\{[^{}]+\})+", head or text):
        found.append("no field before a colon")
    if re.search(r" is no (?!longer|earlier)", text):
        found.append("'is no': write 'is not a'")
    return found


def test_messages_name_field_and_remedy() -> None:
    found = [
        f"{module}:{line}: {', '.join(wrong)}: {text}"
        for module, line, text in messages()
        if text not in OTHER_FORM and (wrong := faults(text))
    ]
    assert found == [], "write FIELD: VALUE is not a ...; REMEDY"


def test_every_exception_to_the_form_still_stands() -> None:
    assert set(OTHER_FORM) <= {text for _, _, text in messages() if faults(text)}, "remove it from the list"


def test_the_errors_of_the_program_are_found() -> None:
    """The rules above would hold for a search that finds nothing."""
    raised = {module for module, _, _ in messages()}
    assert {
        "flows.cli.app",
        "flows.processes.addresses",
        "stages.runtime.workers",
        "stages.tracking.gate.promote",
    } <= raised
    assert is_ours(("flows.errors", "UsageError"))
    assert is_ours(("stages.runtime.endpoint.client", "Refused"))
    assert not is_ours(("stages.runtime.warm", "Refused"))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("--port: 0 is not a port; set one from 1 to 65535", 0),
        ("{error}; correct it", 0),
        ("{name}: {error}", 0),
        ("--port: 0 is not a port", 1),
        ("the port is in use; choose another one", 1),
        ("--port: 0 is no port; set one", 1),
        ("nothing was found", 2),
    ],
)
def test_the_rules_tell_forms_apart(text: str, count: int) -> None:
    assert len(faults(text)) == count
