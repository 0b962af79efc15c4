"""Digest of code for caches, journals and resuming of training: it changes with the behaviour of
code, not with its prose.

For a Python file the digest covers the syntax tree without comments, docstrings and layout, and
without the imports of this project's modules, so that moving files changes nothing. Imports from
elsewhere count by their full name. A module or function of this project that is imported under an
alias counts by its own name, since the rest of the code does not show it. File names and the order
of files do not count. Renaming a module whose name is used in code (``layout.SAMPLES``) is a
change.

Docstrings count as prose, so no code whose result matters may read one (``__doc__``, the
description in a JSON schema).

Trees are written without their empty fields, so that Python 3.11 to 3.13 give the same digest.
Where the parser of another Python version builds other trees, entries under the old digest are not
found and are computed again; a wrong entry is never found.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from stages.errors import MachineError

#: Imports of these packages follow from where files lie.
_OURS = frozenset({"stages", "flows"})


class CodeError(MachineError, ValueError):
    """Code has no digest: a path is missing, or a file is not Python."""


def code_digest(paths: Iterable[Path]) -> str:
    """SHA-256 over all files; a folder stands for all files below it except hidden ones and
    Python's caches.

    Files that are not Python count by their bytes. Python files without code (an ``__init__.py``
    with a docstring) do not count.

    Raises:
        CodeError: a path does not exist, or a ``.py`` file is not Python.
    """
    digests = sorted(filter(None, (_file_digest(file) for path in paths for file in _files(path))))
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for file in path.rglob("*"):
        inside = file.relative_to(path).parts
        if file.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in inside):
            yield file


def _file_digest(path: Path) -> str | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CodeError(
            str(path), "no such file, and its code counts", f"restore it (git checkout -- {path}), or correct dvc.yaml"
        ) from error
    if path.suffix != ".py":
        return hashlib.sha256(content).hexdigest()
    try:
        return _tree_digest(content)
    except (SyntaxError, ValueError) as error:  # ValueError: NUL bytes, in older Pythons
        line = f"line {error.lineno}: " if isinstance(error, SyntaxError) and error.lineno else ""
        raise CodeError(str(path), f"{line}not Python ({getattr(error, 'msg', error)})", "correct it there") from error


@lru_cache(maxsize=1024)  # a process needs the same files several times, and parsing 60 of them takes half a second
def _tree_digest(content: bytes) -> str | None:
    code = _Code()
    body = _written(code.visit(ast.parse(content)))
    return hashlib.sha256(f"{sorted(code.names)} {body}".encode()).hexdigest() if body != _EMPTY else None


class _Code(ast.NodeTransformer):
    """Transformer that drops prose and imports from a tree; ``names`` collects the full names of
    imports."""

    def __init__(self) -> None:
        self.names: set[tuple[str, str]] = set()

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            is_ours = alias.name.split(".")[0] in _OURS
            if is_ours and alias.asname:
                self.names.add((alias.asname, alias.name.rpartition(".")[2]))
            elif not is_ours:
                self.names.add((alias.asname or alias.name, alias.name))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        is_ours = node.level > 0 or module.split(".")[0] in _OURS
        for alias in node.names:
            if is_ours and alias.asname:
                self.names.add((alias.asname, alias.name))
            elif not is_ours:
                self.names.add((alias.asname or alias.name, f"{module}.{alias.name}"))

    def visit_Pass(self, node: ast.Pass) -> None:
        """Drop it: a body that holds a docstring needs none."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        test = node.test
        if getattr(test, "attr", getattr(test, "id", None)) != "TYPE_CHECKING":
            return self.generic_visit(node)
        node.body = []
        return self.generic_visit(node) if node.orelse else None


def _written(node: object) -> str:
    if isinstance(node, ast.AST):
        # `kind` tells u"" from "". None and [] are left out as later Pythons' ast.dump does.
        fields = (
            (name, value)
            for name, value in ast.iter_fields(node)
            if value is not None and value != [] and name != "kind"
        )
        return f"({type(node).__name__}{''.join(f' {name}={_written(value)}' for name, value in fields)})"
    if isinstance(node, list):
        return f"[{','.join(map(_written, node))}]"
    return repr(node)


_EMPTY = _written(ast.Module([], []))
