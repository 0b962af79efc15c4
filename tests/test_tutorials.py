"""The tutorials are followed as a reader would: their commands in one project, one tutorial after
the other."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.checkout import ROOT
from tests.support.projects.repository import git
from tests.support.projects.smoke import environment, make_project

#: A block that is not run says why in the line above it.
NOT_RUN = re.compile(r"<!-- not run: .+ -->\n$")


def tutorials() -> list[Path]:
    """The tutorials in the order of the navigation."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    return [ROOT / "docs" / name for name in re.findall(r"tutorials/[a-z-]+\.md", text)]


def script_of(page: Path) -> str:
    """The commands of a page, as one script that ends with whatever it has started."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in re.finditer(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if not NOT_RUN.search(text[: match.start()]):
            found.append(match[1])
    return "set -euo pipefail\ntrap 'kill $(jobs -p) 2> /dev/null || true; wait || true' EXIT\n" + "\n".join(found)


def with_free_ports(script: str) -> str:
    """The script with a free port in the place of each that it names."""
    for port in dict.fromkeys(re.findall(r"(?:--port |127\.0\.0\.1:)(8[0-9]{3})", script)):
        with socket.create_server(("127.0.0.1", 0)) as listening:
            script = script.replace(port, str(listening.getsockname()[1]))
    return script


def notebook_source() -> str:
    """The code of the notebook that reads a run, as a module."""
    cells = json.loads((ROOT / "docs/examples/read_a_run.ipynb").read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_every_tutorial_has_commands_that_are_run() -> None:
    assert len(tutorials()) == 6
    assert {page.name for page in tutorials()} == {page.name for page in (ROOT / "docs/tutorials").glob("*.md")}
    for page in tutorials():
        assert "vidbridge " in script_of(page), page.name


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_tutorials_can_be_followed(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    # As after a clone: the demo's recipe, and git knows who commits.
    (project / "params.yaml").write_bytes((project / "infra/recipes/tiny.yaml").read_bytes())
    git(project, "commit", "--quiet", "--all", "-m", "as cloned")
    for number, page in enumerate(tutorials()):
        done = subprocess.run(
            ["bash", "-x", "-c", with_free_ports(script_of(page))],
            cwd=project,
            env=environment(
                project,
                MPLBACKEND="Agg",
                GIT_AUTHOR_NAME="Reader",
                GIT_COMMITTER_NAME="Reader",
                EMAIL="reader@example.org",
            ),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{page.name}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        if number == 0:
            assert "nothing to do" in done.stdout
            read = subprocess.run(
                ["python", "-c", notebook_source()],
                cwd=project,
                env=environment(project, MPLBACKEND="Agg"),
                capture_output=True,
                text=True,
                check=False,
            )
            assert read.returncode == 0, read.stderr[-3000:]
            assert (project / "run.png").stat().st_size > 10_000
        git(project, "checkout", "--quiet", "params.yaml")
    assert (project / "champion-folder/model.safetensors").is_file()
    assert yaml.safe_load((project / "infra/recipes/proxies.yaml").read_text())["grpo"].keys() == {"bridge"}
