"""Digest of code for caches, journals and what a training resumes from: it changes with what code does, not with what it says.

Of a Python file the syntax tree counts, without comments, docstrings and layout, and without the imports of this project's modules: a
file that was moved, or one whose neighbours were, is the same code. What comes from elsewhere counts by its full name, and a module or
function of this project that is imported under another name counts by its own, since the code itself does not tell them. File names
and the order of files do not count. A renamed module whose name stands in code (``layout.SAMPLES``) is a change.

Docstrings are taken for prose, so nothing whose result matters may read one (``__doc__``, the description in a JSON schema).

Trees are written without their empty fields, so that Python 3.11 to 3.13 give one digest. Where another Python's parser makes other
trees, what was kept under the old digest is not found, and is made once more; nothing wrong is ever found.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from stages.errors import VidbridgeError

#: Imports of these packages follow from where files lie.
_OURS = frozenset({"stages", "flows"})


class CodeError(VidbridgeError, ValueError):
    """Code that has no digest: it is missing, or is not Python."""


def code_digest(paths: Iterable[Path]) -> str:
    """SHA-256 of files together; a folder stands for all files below it but hidden ones and Python's caches.

    Files that are not Python count by their bytes, and Python files that hold no code (an ``__init__.py`` with a docstring) not at all.

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
            f"{path}: no such file, and its code counts; restore it (git checkout -- {path}), or correct dvc.yaml"
        ) from error
    if path.suffix != ".py":
        return hashlib.sha256(content).hexdigest()
    try:
        return _tree_digest(content)
    except (SyntaxError, ValueError) as error:  # ValueError: NUL bytes, in older Pythons
        line = f"line {error.lineno}: " if isinstance(error, SyntaxError) and error.lineno else ""
        raise CodeError(f"{path}: {line}not Python ({getattr(error, 'msg', error)}); correct it there") from error


@lru_cache(maxsize=1024)  # a process asks for the same files several times, and parsing 60 of them takes half a second
def _tree_digest(content: bytes) -> str | None:
    code = _Code()
    body = _written(code.visit(ast.parse(content)))
    return hashlib.sha256(f"{sorted(code.names)} {body}".encode()).hexdigest() if body != _EMPTY else None


class _Code(ast.NodeTransformer):
    """Takes out of a tree what does not act; ``names`` gathers what imported names stand for."""

    def __init__(self) -> None:
        self.names: set[tuple[str, str]] = set()

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            ours = alias.name.split(".")[0] in _OURS
            if ours and alias.asname:
                self.names.add((alias.asname, alias.name.rpartition(".")[2]))
            elif not ours:
                self.names.add((alias.asname or alias.name, alias.name))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        ours = node.level > 0 or module.split(".")[0] in _OURS
        for alias in node.names:
            if ours and alias.asname:
                self.names.add((alias.asname, alias.name))
            elif not ours:
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
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [] and name != "kind")
        return f"({type(node).__name__}{''.join(f' {name}={_written(value)}' for name, value in fields)})"
    if isinstance(node, list):
        return f"[{','.join(map(_written, node))}]"
    return repr(node)


_EMPTY = _written(ast.Module([], []))
