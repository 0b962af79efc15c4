"""Code of the stages in a project without code of its own: it lies in the installed package, and
still counts as a dependency.

``dvc.yaml`` of such a project (``vidbridge init``) names ``code/<stage>.txt`` where the
repository's names folders of code. The file lists those folders, each with the digest of its code
(:mod:`stages.runtime.code_digest`); a plan brings it up to date first. So an upgrade of the package
that changes what a stage does is a changed dependency of that stage, in git too, and one that
changes nothing is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from flows.processes.environment import shipped
from stages.runtime.bounded_yaml import read_yaml
from stages.runtime.code_digest import code_digest
from stages.runtime.paths import CODE

FOLDER = PurePosixPath(CODE)
_STAGES = "stages/"
_HEAD = "# Code that this stage runs, of the installed package. Written by vidbridge; commit it with dvc.lock.\n"


def pipeline_text() -> str:
    """Text of the ``dvc.yaml`` of a project without code of its own."""
    body = shipped("dvc.yaml").read_text(encoding="utf-8").partition("stages:\n")[2]
    lines = []
    for stage, text in _blocks("stages:\n" + body):
        named = False
        for line in text:
            if line.lstrip().startswith(f"- {_STAGES}"):
                if not named:
                    lines.append(f"{line[: line.index('-')]}- {FOLDER / stage}.txt")
                named = True
            else:
                lines.append(line)
    return "".join((_PIPELINE_HEAD, "\n".join(lines), "\n"))


_PIPELINE_HEAD = """\
# The pipeline of vidbridge. Its code lies in the installed package: code/<stage>.txt holds the
# digest of what each stage runs. Written by `vidbridge init`; after an upgrade `vidbridge doctor`
# says whether it is still the package's: vidbridge init --upgrade .
"""


def _blocks(text: str) -> list[tuple[str, list[str]]]:
    """Lines of ``dvc.yaml``, each with the stage that it belongs to; "" outside of stages."""
    blocks: list[tuple[str, list[str]]] = [("", [])]
    inside = False
    for line in text.rstrip("\n").split("\n"):
        if line and not line[0].isspace() and not line.startswith("#"):
            inside = line == "stages:"
            blocks.append(("", []))
        elif inside and line.startswith("  ") and not line[2].isspace() and line.rstrip().endswith(":"):
            blocks.append((line.strip().removesuffix(":"), []))
        blocks[-1][1].append(line)
    return blocks


@cache
def _texts() -> Mapping[str, str]:
    """Contents of ``code/<stage>.txt`` for the code that runs here, by stage."""
    table: dict[str, Any] = read_yaml(shipped("dvc.yaml"))["stages"]
    package = Path(__file__).parents[2]
    digests: dict[str, str] = {}
    texts = {}
    for stage, entry in table.items():
        named = sorted(dep for dep in entry.get("do", entry)["deps"] if dep.startswith(_STAGES))
        for dep in named:
            if dep not in digests:
                digests[dep] = code_digest([package / dep])
        texts[stage] = _HEAD + "".join(f"{dep} {digests[dep]}\n" for dep in named)
    return texts


def uses_package(root: Path) -> bool:
    """Return whether the project's stages depend on the installed package's code, not on code in
    the project.
    """
    return (root / FOLDER).is_dir() and not (root / _STAGES).is_dir()


def refresh(root: Path) -> tuple[str, ...]:
    """Bring ``code/*.txt`` up to date if the project has them; returns the stages whose code
    changed.
    """
    if not uses_package(root):
        return ()
    changed = []
    for stage, text in _texts().items():
        path = root / FOLDER / f"{stage}.txt"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(stage)
    return tuple(changed)


def write(root: Path) -> None:
    """Write ``code/*.txt`` into a project that has none yet."""
    (root / FOLDER).mkdir(exist_ok=True)
    refresh(root)


def parse(text: str) -> dict[str, str]:
    """Map folder to digest, as one file lists them."""
    rows = (line.split() for line in text.splitlines() if line and not line.startswith("#"))
    return {row[0]: row[1] for row in rows if len(row) == 2}
