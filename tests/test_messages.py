"""The form of error messages: field, problem with the value, remedy."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import pytest

from flows.errors import FlowError, RunFailed, StageFailed, UsageError
from stages.errors import InputError
from stages.lib.video.errors import VideoError
from tests.support.checkout import ROOT

BASE = ("stages.errors", "VidbridgeError")
FAULT = ("stages.errors", "Fault")
#: Module and field of messages without a remedy of ours, each with the reason.
WITHOUT_REMEDY = {("stages.tracking.lineage.git", ("git {arguments[0]} in {root}",)): "git says it in its own words"}


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


class Written(NamedTuple):
    """The parts of one message as its source has them; a part that is not written out there has no
    texts."""

    module: str
    line: int
    field: tuple[str, ...]
    problem: tuple[str, ...]
    remedy: tuple[str, ...]


@cache
def messages() -> tuple[Written, ...]:
    """Every construction of one of our errors from its three parts, and of a Fault, which has no
    field."""
    found = []
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or any(isinstance(part, ast.Starred) for part in node.args):
                continue
            key = resolved(module, node.func)
            if key == FAULT and len(node.args) == 2:
                found.append(Written(module, node.lineno, (), *(tuple(texts(part)) for part in node.args)))
            elif key is not None and is_ours(key) and len(node.args) == 3:
                found.append(Written(module, node.lineno, *(tuple(texts(part)) for part in node.args)))
    return tuple(found)


def faults(written: Written) -> list[str]:
    """Rules that a message breaks."""
    found = []
    if any(not field.strip() or "; " in field or ": " in re.sub(r"\{[^{}]*\}", "", field) for field in written.field):
        found.append("the field is not a name alone")
    if any(
        not problem.strip() or problem.startswith((";", ":")) or problem.endswith((";", "."))
        for problem in written.problem
    ):
        found.append("the problem is not a sentence without its end")
    if any(re.search(r" is no (?!longer|earlier)", problem) for problem in written.problem):
        found.append("'is no': write 'is not a'")
    if any(not remedy.strip() for remedy in written.remedy):
        found.append("no remedy")
    return found


def test_messages_have_field_problem_and_remedy() -> None:
    found = [
        f"{one.module}:{one.line}: {', '.join(wrong)}: {one[2:]}"
        for one in messages()
        if (one.module, one.field) not in WITHOUT_REMEDY and (wrong := faults(one))
    ]
    assert found == [], "raise SomeError(field, problem with the value, remedy)"


def test_every_exception_to_the_form_still_stands() -> None:
    assert {(one.module, one.field) for one in messages() if faults(one)} >= WITHOUT_REMEDY.keys(), (
        "remove it from the list"
    )


def test_the_errors_of_the_program_are_found() -> None:
    """The rules above would hold for a search that finds nothing."""
    raised = {one.module for one in messages()}
    assert {
        "flows.cli.app",
        "flows.processes.addresses",
        "stages.runtime.workers",
        "stages.tracking.gate.promote",
    } <= raised
    assert len(messages()) > 350
    assert is_ours(("flows.errors", "UsageError"))
    assert is_ours(("stages.runtime.endpoint.client", "Refused"))
    assert not is_ours(("stages.runtime.warm", "Refused"))


@pytest.mark.parametrize(
    ("field", "problem", "remedy", "count"),
    [
        ("--port", "0 is not a port", "set one from 1 to 65535", 0),
        ("{name}", "{error}", "correct it", 0),
        ("--port", "0 is not a port", "", 1),
        ("--port", "0 is no port", "set one", 1),
        ("--port: 0 is not a port", "", "set one", 2),
        ("--port", "0 is not a port.", "set one", 1),
    ],
)
def test_the_rules_tell_forms_apart(field: str, problem: str, remedy: str, count: int) -> None:
    assert len(faults(Written("m", 1, (field,), (problem,), (remedy,)))) == count


def test_every_error_belongs_to_a_branch() -> None:
    """Who catches a branch catches everything of its kind."""
    roots = {key for key, node in classes().items() if any(resolved(key[0], base) == BASE for base in node.bases)}
    assert {name for _, name in roots} == {
        "InputError",
        "EndpointError",
        "MachineError",
        "TrackingError",
        "FlowError",
    }


def test_an_error_keeps_its_parts_on_every_way() -> None:
    error = UsageError.joined([InputError("a", "1", "b"), InputError("c", "2", "d")])
    assert (error.field, error.problem, error.remedy) == ("a", "1", "b")
    assert str(error) == "a: 1; b\nc: 2; d"
    assert error.each() == ("a: 1; b", "c: 2; d")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    within = FlowError.from_error(error, within="x", remedy="y")
    assert str(within) == "x: a: 1; y\nc: 2; d"
    for other in (
        VideoError("damaged", "v.mp4: ends early"),
        StageFailed("sft@a", 3, ("one", "two")),
        RunFailed(["l"], "r"),
    ):
        again = pickle.loads(pickle.dumps(other))
        assert (str(again), vars(again)) == (str(other), vars(other))
