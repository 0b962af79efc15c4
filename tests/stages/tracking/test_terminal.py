"""Output of the registry's commands on a real registry that others can write to: no escape
sequence, no markup, no password."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from stages.tools.upgrade import concerns_of_project, concerns_of_registry
from stages.tracking.gate import promote
from stages.tracking.registry.register import register
from stages.tracking.runs.run import TAG
from stages.tracking.runs.store import open_client
from stages.tracking.session import Session
from tests.support.checkout import ROOT
from tests.support.processes.commands import commands, vidbridge
from tests.support.surroundings import forget

CLIP = next(iter(sorted((ROOT / "tests/data/clips").glob("*.mp4"))))
MODEL = "vidbridge-tiny"
#: Sets the title, colours, opens markup of rich's that nothing closes, is an emoji's code, shows
#: what follows backwards, breaks a line.
HOSTILE = "[/red][bold]\x1b]0;TITLE\x07\x1b[31m:dog:\u202e\x9b31m [link=http://evil.example]x\nline"
SHOWN = r"[/red][bold]\x1b]0;TITLE\x07\x1b[31m:dog:\u202e\x9b31m [link=http://evil.example]x\nline"


@pytest.fixture(scope="module")
def registered(dvc_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with versions and a champion. Tests copy it before they change it."""
    root = tmp_path_factory.mktemp("registered") / "project"
    shutil.copytree(dvc_project, root)
    with pytest.MonkeyPatch.context() as patch:
        forget(patch, "VIDBRIDGE_", "MLFLOW_", "GIT_")
        patch.setenv("VIDBRIDGE_PROJECT", str(root))
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        register(Session(root))
        promote.promote(Session(root), author="somebody", reason="a start")
    return root


@pytest.fixture
def project(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    forget(monkeypatch, "VIDBRIDGE_", "MLFLOW_", "GIT_", "PREFECT_")
    root = tmp_path / "project"
    shutil.copytree(registered, root, symlinks=True)
    monkeypatch.setenv("VIDBRIDGE_PROJECT", str(root))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    return root


def leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for key, part in value.items() for leaf in (key, *leaves(part))]
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, list) else [value]


def test_tags_and_names_of_the_registry_are_text(project: Path) -> None:
    client = open_client(project)
    champion = client.get_model_version_by_alias(MODEL, "champion")
    for name in ("stage", "recipe", "git_commit", "params_digest", "promoted_by", "reason", "verdict"):
        client.set_model_version_tag(MODEL, champion.version, TAG + name, HOSTILE)
    client.set_model_version_tag(MODEL, champion.version, TAG + "data", json.dumps({HOSTILE: HOSTILE}))
    client.set_model_version_tag(
        MODEL, champion.version, TAG + "params", json.dumps({"params.yaml": {HOSTILE: HOSTILE}})
    )
    promote.promote(Session(project), "1", author=HOSTILE, reason=HOSTILE)
    asked = [("explain", str(champion.version)), ("history",), ("compare", str(champion.version), "1")]
    asked += [("explain", str(champion.version), "--json"), ("history", "--json")]
    for command, shown in zip(
        asked, commands(project, [({}, command) for command in asked], COLUMNS="400"), strict=True
    ):
        said = shown.said
        assert "Traceback" not in said, said
        assert not [character for character in said if character in "\x1b\x07\x9b\u202e\r"], command
        if command[0] != "compare":
            assert shown.returncode == 0, said
            assert "🐶" not in said
            # A program gets the original text, in a document that a terminal can display.
            assert (HOSTILE in leaves(json.loads(shown.stdout))) if command[-1] == "--json" else (SHOWN in said), said


def test_who_and_why_are_shown_whole_where_the_output_is_no_terminal(project: Path) -> None:
    who = "maintainer-of-a-long-name@a-host-with-a-long-name.example.org"
    why = "it is better on captions of scenes at night, and no worse on any other"
    promote.promote(Session(project), "1", author=who, reason=why)
    said = vidbridge("history", cwd=project, COLUMNS="").stdout
    assert max(map(len, said.splitlines())) <= 120
    header = next(line for line in said.splitlines() if " who " in line and " why" in line)
    at, why_at = header.index("who"), header.index("why")
    rows = said.splitlines()[4:]
    assert "".join(row[at:why_at].strip() for row in rows) == f"somebody{who}"
    assert why in " ".join(" ".join(row[why_at:] for row in rows).split())


CANARY = "CANARY7f3a"


def test_no_password_of_any_uri_is_printed_logged_or_written(project: Path) -> None:
    """The registry works and everything else does not answer; then the registry is a database that
    does not answer either."""
    elsewhere = {
        "VIDBRIDGE_DVC_REMOTE": f"https://bob:{CANARY}@127.0.0.1:9/x?token={CANARY}",
        "PREFECT_API_URL": f"http://bob:{CANARY}@127.0.0.1:9/api",
        "VIDBRIDGE_JUDGE_URL": f"http://bob:{CANARY}@127.0.0.1:9/v1",
        "VIDBRIDGE_JUDGE_KEY": f"sk-{CANARY}",
    }
    no_store = {"MLFLOW_TRACKING_URI": f"postgresql+psycopg2://bob:{CANARY}@127.0.0.1:9/db?password={CANARY}"}
    http_store = {"MLFLOW_TRACKING_URI": f"http://bob:{CANARY}@127.0.0.1:9"}
    git = ["git", "-C", str(project), "remote", "add", "origin", f"https://bob:{CANARY}@127.0.0.1:9/r.git"]
    subprocess.run(git, check=True, capture_output=True)
    shutil.rmtree(project / ".dvc/cache")
    shutil.rmtree(project / ".vidbridge/remote")
    asked = ("--annotations", str(project), "--out", str(project / "e"), "--videos", str(project))
    doors = [
        (elsewhere, ("doctor",)),
        (elsewhere, ("explain", "champion")),
        (elsewhere, ("predict", str(CLIP), "-q", "What?")),
        (elsewhere, ("export", str(project / "exported"))),
        (elsewhere, ("register",)),
        (elsewhere, ("run",)),
        (elsewhere, ("promote", "1")),
        (elsewhere | no_store, ("doctor",)),
        (no_store, ("history",)),
        (http_store, ("history",)),
        (
            {},
            (
                "evaluate",
                "--benchmark",
                "mvbench",
                "--endpoint",
                elsewhere["VIDBRIDGE_JUDGE_URL"],
                "--endpoint-model",
                "m",
                *asked,
            ),
        ),
        (
            {},
            (
                "score",
                "--benchmark",
                "mvbench",
                "--annotations",
                f"hf://datasets/{CANARY}@x",
                "--predictions",
                "p.jsonl",
            ),
        ),
    ]
    for (_, command), done in zip(doors, commands(project, doors, COLUMNS="400"), strict=True):
        said = done.said.replace(f"hf://datasets/{CANARY}", "")
        assert CANARY not in said, f"{command}: {said[-3000:]}"
        if command[0] not in ("explain",):
            assert done.returncode != 0, f"{command}: {said[-2000:]}"
        assert "Traceback" not in said, f"{command}: {said[-3000:]}"
    written = [
        path
        for path in project.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and path != project / ".git/config"
        and CANARY.encode() in path.read_bytes()
    ]
    assert written == []


def test_a_url_as_remote_is_a_remote(project: Path, tmp_path: Path) -> None:
    none = tmp_path / "none.db"
    changes = [
        {"VIDBRIDGE_DVC_REMOTE": f"https://bob:{CANARY}@127.0.0.1:9/x", "MLFLOW_TRACKING_URI": f"sqlite:///{none}"},
        {"VIDBRIDGE_DVC_REMOTE": "nowhere", "MLFLOW_TRACKING_URI": f"sqlite:///{none}"},
    ]
    url, name = commands(project, [(change, ["doctor"]) for change in changes], COLUMNS="300")
    # Looking for a registry does not create it.
    assert not none.exists()
    assert "no result of 0.1" in url.stdout
    said = url.stdout
    line = next(line for line in said.splitlines() if line.startswith("DVC remote"))
    assert "missing" in line.split(), "it is known for a remote, and does not answer"
    assert "Cannot connect" in line
    assert "https://bob:***@127.0.0.1:9/x" in line
    assert "no remote is called nowhere" in name.stdout


def test_a_version_that_is_not_there_is_said_once_and_without_a_server(project: Path) -> None:
    shown = vidbridge("promote", "99", cwd=project)
    assert shown.returncode == 1
    assert shown.said.count("no version '99'") == 1
    assert "Traceback" not in shown.stderr
    assert not (project / ".vidbridge/prefect").exists()


def test_the_doctor_names_what_0_1_made(project: Path) -> None:
    """0.1's marks in the real lock and the real registry: no ``ingest.tolerance``, a digest of
    its own, Qwen's weights without a rule."""
    assert concerns_of_project(project) == []
    lock = (project / "dvc.lock").read_text()
    assert "  base:" in lock
    record = (
        "  ingest:\n    cmd: python -m stages ingest\n    params:\n      params.yaml:\n        ingest: {source:"
        " videos}\n"
    )
    (project / "dvc.lock").write_text(lock.replace("  base:", f"{record}  base:", 1))
    (one,) = concerns_of_project(project)
    assert "ingest was made by 0.1" in one.problem
    assert "vidbridge run" in one.remedy

    # Scored under d1, as the test's stages say; the project's samples and parameters make another
    # evaluation.
    (project / "data/samples/summary.json").write_text(
        json.dumps({"samples": {"train": {}, "validation": {}, "test": {"mcqa": 20}}})
    )
    found = {concern.what: concern for concern in concerns_of_registry(Session(project))}
    champion = next(concern for what, concern in found.items() if "champion" in what)
    assert "was scored under evaluation d1, and this project's is " in champion.problem
    assert "vidbridge promote" in champion.remedy

    shown = vidbridge("doctor", cwd=project, COLUMNS="300")
    lines = [line for line in shown.stdout.splitlines() if line.startswith("upgrade")]
    assert any("dvc.lock: ingest was made by 0.1" in line for line in lines), lines
    assert any("was scored under evaluation d1" in line for line in lines), lines
    assert "ready" in shown.stdout, "an upgrade is a warning"


def test_weights_of_0_1_have_to_be_trained_again(project: Path) -> None:
    from stages.tracking.lineage.opening import open_content
    from stages.tracking.lineage.source import parse_source
    from stages.tracking.registry.versions import find_version

    version = find_version(open_client(project), MODEL, "champion")
    source = parse_source(version.source)
    with open_content(project) as content:
        config = Path(content.cache.oid_to_path(content.files(source.oid)[f"{source.path}/config.json"]))

    def says(what: dict[str, str]) -> None:
        config.chmod(0o644)
        config.write_text(json.dumps(what))
        config.chmod(0o444)  # what is writable in a cache is hashed before it is believed

    says({"model_type": "qwen2_5_vl", "transformers_version": "5.23.0"})
    (one,) = [concern for concern in concerns_of_registry(Session(project)) if "champion" in concern.what]
    assert "are refused" in one.problem
    assert "vidbridge promote --new-evaluation" in one.remedy
    says({"model_type": "qwen2_5_vl", "positions_behind_video": "after_last"})
    assert not [concern for concern in concerns_of_registry(Session(project)) if "are refused" in concern.problem]
