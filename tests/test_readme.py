"""README and documentation tell a reader what to type and to paste: rows that are accepted,
commands and files that exist."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml

from flows.cli.main import app
from flows.costs.rates import Rates
from stages.lib.annotations.mapping.schema import Mapping
from stages.lib.video.encoder import encode
from stages.params import GrpoRow, ParamsError, parse_params
from tests.support.checkout import ROOT
from tests.support.processes.commands import vidbridge
from tests.support.surroundings import forget

README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
DOCUMENTATION = sorted((ROOT / "docs").rglob("*.md"))
#: What a person reads and copies from; the history of what was decided and changed may name what is
#: gone.
PAGES = (
    README,
    CONTRIBUTING,
    *DOCUMENTATION,
    ROOT / "tests/data/clips/README.md",
    *sorted((ROOT / "stages/pages/templates").glob("*.md.j2")),
)


@dataclass(frozen=True)
class Block:
    """A block of code: where it begins, its language, and its text."""

    where: str
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(f"{page.name}:{text.count(chr(10), 0, match.start()) + 1}", match[1], match[2])


def annotation_blocks() -> list[Block]:
    """Blocks of JSON whose rows name a video: what a person pastes into annotations.jsonl."""
    return [
        block
        for page in PAGES
        for block in blocks(page)
        if block.language in ("json", "jsonl") and '"video"' in block.text
    ]


def test_annotations_are_accepted_as_they_are_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, "VIDBRIDGE_", "MLFLOW_")
    found = annotation_blocks()
    assert any(block.where.startswith("README.md") for block in found)
    for number, block in enumerate(found):
        project, videos = tmp_path / f"project-{number}", tmp_path / f"videos-{number}"
        project.mkdir()
        for name in ("params.yaml", "dvc.yaml"):
            (project / name).write_bytes((ROOT / name).read_bytes())
        lines = [json.loads(line) for line in block.text.splitlines()]
        for shade, row in enumerate(lines):
            video = videos / row["video"]
            video.parent.mkdir(parents=True, exist_ok=True)
            # Two seconds, which no two files show alike.
            frames = (
                np.full((16, 64, 64, 3), 40 * shade, np.uint8) + 4 * np.arange(16, dtype=np.uint8)[:, None, None, None]
            )
            encode(frames, Fraction(8), video, 18)
        (videos / "annotations.jsonl").write_text(block.text, encoding="utf-8")
        env = {"VIDBRIDGE_PROJECT": str(project), "COLUMNS": "200"}
        done = vidbridge("data", "check", str(videos), cwd=project, **env)
        assert done.returncode == 0, f"{block.where}: {done.stdout}{done.stderr}"
        parts = {(row["video"], row.get("start"), row.get("end")) for row in lines}
        counted = f"{len(parts)} accepted; {len(lines)} rows read: {len(lines)} used, 0 rejected"
        assert counted in done.stdout, f"{block.where}: {done.stdout}"
        assert "rejected beside them" not in done.stdout, f"{block.where}: {done.stdout}"


def commands(text: str) -> Iterator[list[str]]:
    """Every call of ``vidbridge`` in lines of a shell, as its arguments; comments and assignments
    before it are left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        starts = [place + 1 for place, word in enumerate(words) if word == "vidbridge" and _begins(words[:place])]
        for start in starts:
            ends = [place for place, word in enumerate(words) if place >= start and word in ("&&", "||", ";", "|", ">")]
            yield words[start : ends[0] if ends else None]


def _begins(before: list[str]) -> bool:
    """Whether a command begins behind these words: assignments, or the end of another command."""
    while before and re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", before[-1]):
        before = before[:-1]
    return not before or before[-1] in ("&&", "||", ";", "|", "$")


def shown_commands() -> list[tuple[str, list[str]]]:
    """Each command that a page shows, in a block or in a line, and that a command's own help gives
    as its example.

    A line of prose may name a command without what it needs ("`vidbridge score` says so"); the name
    has to be there all the same.
    """
    found: list[tuple[str, list[str]]] = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in blocks(page):
            if block.language in ("bash", "sh", "console"):
                found += [(block.where, call) for call in commands(block.text)]
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        for inline in re.findall(r"`([^`\n]*\bvidbridge [^`\n]*)`", prose):
            called = commands(inline)
            found += [(f"{page.name}: {inline}", [*call, "--help"] if is_name(call) else call) for call in called]
    for name, command in all_commands():
        for example in re.findall(r"Examples?: ([^\n]*(?:\n(?!\n)[^\n]*)*)", command.help or ""):
            for part in re.split(r", or (?=vidbridge)", " ".join(example.split())):
                call = part.strip("`. ")
                if call.startswith("vidbridge "):
                    found += [(f"help of {name}", words) for words in commands(call.split("; ")[0])]
    return found


@cache
def whole_command() -> Any:
    return typer.main.get_command(app)


def all_commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its name."""
    waiting: list[tuple[str, Any]] = [("vidbridge", whole_command())]
    while waiting:
        name, command = waiting.pop()
        below = getattr(command, "commands", None)
        if below is None:
            yield name, command
        else:
            waiting += [(f"{name} {word}", each) for word, each in below.items()]


@cache
def names() -> frozenset[str]:
    return frozenset(name for name, _ in all_commands())


def is_name(call: list[str]) -> bool:
    return f"vidbridge {' '.join(call)}" in names()


def parse(arguments: list[str]) -> None:
    """Read the arguments as ``vidbridge`` does, and run nothing.

    Raises:
        BadParameter, NoSuchOption and others of typer: there is no such command or option, or a
            value is missing or of another type.
    """
    command = whole_command()
    context = command.make_context("vidbridge", list(arguments))
    while (below := getattr(command, "commands", None)) is not None:
        # What a group leaves over: the name of the command below it, and that command's own
        # arguments.
        name, *rest = [*context._protected_args, *context.args]
        if name not in below:
            raise typer.BadParameter(f"No such command '{name}'")
        command = below[name]
        context = command.make_context(name, rest, parent=context)


def test_commands_are_read_as_the_shell_would() -> None:
    text = (
        "A_B=1 vidbridge run --yes && vidbridge ui   # vidbridge nothing\nexport X=vidbridge\nls vidbridge\ndvc x &&"
        " vidbridge plan > f"
    )
    assert list(commands(text)) == [["run", "--yes"], ["ui"], ["plan"]]


@pytest.mark.parametrize(
    "wrong", [["rum"], ["run", "--yess"], ["data", "chek", "x"], ["recipe", "use"], ["serve", "--port", "x"]]
)
def test_a_wrong_command_would_be_found(wrong: list[str]) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|missing|valid"):
        parse(wrong)


def test_every_command_that_is_shown_exists_with_its_options() -> None:
    shown = shown_commands()
    assert sum(where.startswith("README.md") for where, _ in shown) > 10
    assert len(shown) > 150
    wrong = []
    for where, call in shown:
        try:
            parse(call)
        except typer.Exit:
            # --help has said what it says.
            continue
        except Exception as error:
            wrong.append(f"{where}: vidbridge {shlex.join(call)}: {getattr(error, 'message', error)}")
    assert not wrong, "\n".join(wrong)


def test_every_command_has_an_example() -> None:
    assert not [name for name, command in all_commands() if "Example: " not in (command.help or "")]


def test_targets_of_make_that_are_shown_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in (README, CONTRIBUTING, *DOCUMENTATION):
        text = page.read_text(encoding="utf-8")
        shown = re.findall(r"`make ([a-z-]+)[^`]*`|^make ([a-z-]+)", text, re.MULTILINE)
        named = {first or second for first, second in shown}
        assert named or page in DOCUMENTATION, page.name
        assert named <= targets, f"{page.name}: {sorted(named - targets)}"


def test_links_lead_somewhere() -> None:
    for page in (README, CONTRIBUTING):
        text = page.read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("#"):
                assert target[1:] in anchors, f"{page.name}: {target}"
            elif "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def merged(table: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """A table with the values of a part of it in their places; a part that names its kind replaces
    one of another kind."""
    both = {
        key: merged(table[key], value)
        for key, value in part.items()
        if isinstance(value, dict)
        and isinstance(table.get(key), dict)
        and value.get("kind") == table[key].get("kind", value.get("kind"))
    }
    return table | part | both


def placed(recipe: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """A recipe with a part in its place; keys of a GRPO row are set in every such row."""
    if set(part) <= set(recipe):
        return merged(recipe, part)
    assert set(part) <= set(GrpoRow.model_fields), part
    return recipe | {"grpo": {name: merged(row, part) for name, row in recipe["grpo"].items()}}


def test_values_of_params_that_are_shown_are_read(tmp_path: Path) -> None:
    """A block is a part of some recipe, or of a row; one with an ellipsis is a sketch, and one that
    includes a file is that file. Tasks of one's own are those of the examples."""
    recipes = [
        yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "infra/recipes").glob("*.yaml"))
    ]
    shown = [block for page in DOCUMENTATION for block in blocks(page) if block.language == "yaml"]
    shown = [block for block in shown if "..." not in block.text and "--8<--" not in block.text]
    assert len(shown) > 4
    shutil.copytree(ROOT / "docs/examples/tasks", tmp_path / "tasks")
    for block in shown:
        part = yaml.safe_load(block.text)
        if set(part) <= set(Rates.model_fields):
            Rates.model_validate(part)
            continue
        if "video" in part:
            Mapping.model_validate(part)
            continue
        refused = []
        for recipe in recipes:
            try:
                parse_params(placed(recipe, part), root=tmp_path)
            except ParamsError as error:
                refused.append(f"{recipe['recipe']}: {error}")
        assert len(refused) < len(recipes), f"{block.where}: {refused}"


def test_the_licence_is_the_one_that_is_stated() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert text.rstrip().endswith("limitations under the License.")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'license = "Apache-2.0"\nlicense-files = ["LICENSE"]' in project
    assert "under Apache-2.0" in (ROOT / "stages/pages/templates/model_card.md.j2").read_text(encoding="utf-8")
    assert "[LICENSE](LICENSE)" in README.read_text(encoding="utf-8")
