"""First hour of a user: commands outside a project, ordinary mistakes, odd terminals. One sentence
each, and a fitting status.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flows.console import show
from flows.processes.environment import shipped
from flows.processes.locks import only_run
from flows.repro import reproduce
from flows.repro.steps import Plan, PlanStep, StageMeta
from tests.support.checkout import ROOT
from tests.support.processes.commands import commands, vidbridge

CLIPS = ROOT / "tests/data/clips"
ESCAPES = "\x1b\x07\x9b\u202e\r"


def test_what_needs_no_project_works_anywhere(tmp_path: Path) -> None:
    here = tmp_path / "anywhere"
    here.mkdir()
    (here / "videos").mkdir()
    shutil.copy(CLIPS / "annotations.jsonl", here / "videos")
    for clip in CLIPS.glob("*.mp4"):
        shutil.copy(clip, here / "videos")
    (here / "empty").mkdir()
    (here / "empty/annotations.jsonl").write_text('{"video": "gone.mp4"}\n')
    (here / "mvbench").mkdir()
    row = {"video": "a.mp4", "question": "What?", "candidates": ["x", "y"], "answer": "x"}
    (here / "mvbench/action_antonym.json").write_text(json.dumps([row]))
    (here / "said.jsonl").write_text('{"id": "action_antonym/0", "reply": "A"}\n')
    scored = [
        "score",
        "--benchmark",
        "mvbench",
        "--annotations",
        "mvbench",
        "--predictions",
        "said.jsonl",
        "--out",
        "scores.json",
    ]
    asked = [
        ["--version"],
        ["recipe", "list"],
        ["recipe", "show", "smoke"],
        ["data", "check", "videos"],
        ["data", "check", "videos", "--json"],
        ["data", "check", "empty"],
        ["data", "check", "nowhere"],
        scored,
        [*scored[:-1], "/dev/full"],
        ["doctor"],
        ["predict", str(ROOT / "README.md"), "-q", "What?"],
        ["predict", str(next(CLIPS.glob("*.mp4"))), "-q", "What?"],
        ["predict", "gone.mp4", "-q", "What?"],
        ["plan"],
    ]
    done = commands(here, [({}, command) for command in asked])
    version, listed, recipe, checked, document, empty, nowhere, score, full, doctor, text, clip, gone, plan = done
    assert [one.returncode for one in done] == [0, 0, 0, 0, 0, 1, 2, 0, 1, 1, 1, 2, 2, 2]
    assert [one for one in done if "Traceback" in one.said] == []
    assert version.stdout.startswith("vidbridge 0.")
    assert {line.split()[0] for line in listed.stdout.splitlines()} == {
        path.stem for path in shipped("recipes").glob("*.yaml")
    }
    assert recipe.stdout == (ROOT / "infra/recipes/smoke.yaml").read_text()
    assert "1 accepted; 1 rows read: 1 used, 0 rejected" in checked.stdout
    assert "with the parameters of the recipe vidbridge-r1" in checked.stdout
    found = json.loads(document.stdout)
    assert (found["accepted"], found["recipe"], found["rejects"]) == (1, "vidbridge-r1", [])
    assert [clip["path"] for clip in found["clips"]] == [json.loads((CLIPS / "annotations.jsonl").read_text())["video"]]
    assert "0 accepted; 1 rows read: 0 used, 1 rejected" in empty.stdout
    assert "error: folder: " in nowhere.stderr
    assert json.loads((here / "scores.json").read_text())["answered"] == 1
    assert "mvbench: 1 of 1 questions answered" in score.stdout
    assert full.stderr.startswith("error: the disk is full")
    assert "is not inside one (no dvc.yaml upward of it)" in " ".join(doctor.stdout.split())
    assert "missing: project" in doctor.stdout
    assert (
        text.stderr
        == "error: not-a-video: README.md: no known video format (Invalid data found when processing input)\n"
    )
    assert "--model FOLDER" in clip.stderr
    assert "gone.mp4' is not a file" in gone.stderr
    assert "not inside a project" in plan.stderr
    assert sorted(path.name for path in here.iterdir()) == ["empty", "mvbench", "said.jsonl", "scores.json", "videos"]


def test_a_file_that_is_no_video_is_told_before_anything_heavy_is_imported(project: Path) -> None:
    code = (
        "import sys\nfrom stages.tools.serving.predict import check_video\nfrom pathlib import Path\n"
        "try:\n    check_video(Path('params.yaml'))\nexcept Exception as error:\n    print(type(error).__name__)\n"
        "print([name for name in ('torch', 'transformers', 'mlflow', 'dvc') if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["VideoError", "[]"]


@pytest.mark.parametrize("group", [[], ["data"], ["recipe"], ["scratch"]])
def test_no_line_of_help_is_cut(group: list[str], tmp_path: Path) -> None:
    shown = vidbridge(*group, "--help", cwd=tmp_path, COLUMNS="80").stdout
    assert not [line for line in shown.splitlines() if line.endswith("...") and "Usage:" not in line]


def test_mistakes_about_stages_name_what_there_is(done: Path) -> None:
    shown = commands(
        done, [({}, ["run", "sft"]), ({}, ["plan", "grpo"]), ({}, ["plan", "nope"]), ({}, ["ablate", "--table"])]
    )
    assert [one.returncode for one in shown] == [2, 2, 2, 0]
    assert "error: stage: 'sft' is a group of 1; name one of them: sft@cold-start\n" in shown[0].stderr
    assert "name one of them: grpo@bridge, grpo@general" in shown[1].stderr
    assert "stage: 'nope' is not a stage of dvc.yaml; choose one of base, " in shown[2].stderr
    assert shown[3].stdout.startswith("ablation: no seed has run whole")


def test_the_second_of_two_runs_prints_no_plan(done: Path) -> None:
    (done / "learning.py").write_text("rate = 2\n")
    with only_run(done):
        shown = vidbridge("run", cwd=done)
    assert shown.returncode == 1
    assert shown.stdout == ""
    assert "is running this project already" in shown.stderr


def test_trouble_with_files_is_one_sentence_with_the_path(project: Path) -> None:
    (project / "infra/recipes").mkdir(parents=True)
    shutil.copy(ROOT / "infra/recipes/smoke.yaml", project / "infra/recipes")
    (project / "params.yaml.unfinished").mkdir()
    (project / "data/samples").mkdir(parents=True)
    counted = {"train": {"mcqa": 1}, "validation": {}, "test": {}}
    (project / "data/samples/summary.json").write_text(json.dumps({"samples": counted}))
    (project / "data/samples/train").mkdir()
    (project / "data/clips").mkdir(parents=True)
    (project / "data/clips/manifest.jsonl").write_text("{damaged\n")
    for name in ("rejects.jsonl", "train/mcqa.jsonl"):
        (project / "data/samples" / name).write_text("{damaged\n")
    (project / "data/clips/rejects.jsonl").write_text("{damaged\n")
    shown = commands(
        project,
        [
            ({}, ["recipe", "use", "smoke", "--force"]),
            ({}, ["data", "browse"]),
            ({}, ["data", "check", "params.yaml/inside"]),
            ({}, ["data", "check", ".", "--format", "coins"]),
            ({"VIDBRIDGE_PROJECT": str(project / "params.yaml")}, ["plan"]),
            ({}, ["data", "cut", "s3://bucket/films"]),
        ],
    )
    for one in shown:
        assert one.returncode in (1, 2), one.said
        assert "Traceback" not in one.said, one.said
        assert len([line for line in one.stderr.splitlines() if line.startswith("error: ")]) == 1, one.stderr
    assert shown[0].stderr == "error: params.yaml.unfinished is a folder, and a file is needed; name a file\n".replace(
        "params.yaml.unfinished", str(project / "params.yaml.unfinished")
    )
    assert ".jsonl:1: " in shown[1].stderr
    assert "folder: 's3://bucket/films' is not on this machine; cut a copy of its files" in shown[5].stderr


def test_a_defect_keeps_its_traceback_and_says_where_it_goes(project: Path) -> None:
    code = (
        "import sys\nfrom flows.cli import main as cli\nfrom stages.tracking import session\n"
        "def broken(*_): raise KeyError('https://bob:CANARY@host')\n"
        "session.open_client = broken\nsys.argv = ['vidbridge', 'history']\ncli.main()"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=env, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr
    assert "KeyError: 'https://bob:***@host'" in shown.stderr
    assert shown.stderr.rstrip().endswith("please report it with the lines above and what `vidbridge --version` says")
    assert "CANARY" not in shown.stderr


def test_a_terminal_of_ascii_is_written_to(done: Path) -> None:
    env = {"PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "COLUMNS": "120"}
    run, nowhere = commands(done, [({}, ["run"]), ({}, ["data", "check", "no–where\udcff"])], **env)
    assert run.returncode == 0, run.stderr
    assert "nothing to do" in run.stdout
    assert nowhere.returncode == 2, nowhere.stderr
    assert r"no\u2013where" in nowhere.stderr
    assert run.said.isascii()
    assert nowhere.said.isascii()


def test_a_reader_who_has_seen_enough_ends_it_quietly(project: Path) -> None:
    (project / "infra/recipes").mkdir(parents=True)
    for n in range(400):
        (project / f"infra/recipes/r{n}.yaml").write_text("# " + "word " * 400 + "\n")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = f"{sys.executable} -m flows.cli.main recipe list | head -1"
    shown = subprocess.run(["bash", "-c", command], cwd=project, env=env, capture_output=True, text=True, check=False)
    assert shown.stdout.startswith("  r0 ")
    assert shown.stderr == ""
    command = f"{sys.executable} -m flows.cli.main recipe show r1 > /dev/full"
    shown = subprocess.run(["bash", "-c", command], cwd=project, env=env, capture_output=True, text=True, check=False)
    assert shown.stderr == "error: the disk is full; free some space and start again: what was done stays done\n"


def test_ctrl_c_ends_a_command_with_a_sentence(project: Path) -> None:
    code = (
        # Where the suite runs in the background of a shell, SIGINT is ignored, and children would
        # inherit that.
        "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nfrom flows.cli import main"
        " as cli\nfrom stages.tracking import session\ndef slow(*_): os.kill(os.getpid(),"
        " signal.SIGINT)\nsession.open_client = slow\nsys.argv = ['vidbridge', 'history']\ncli.main()"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=env, capture_output=True, text=True, check=False
    )
    assert (shown.returncode, shown.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("module", ["typer", "rich.segment", "pydantic", "flows.repro.reproduce", "flows.project.run"])
def test_ctrl_c_while_a_run_imports(module: str, project: Path) -> None:
    """The signal comes at the moment when ``module`` is looked for: of the command line, and of the
    command.
    """
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
sys.argv = ["vidbridge", "run"]
from flows.cli.command import main
main()
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=env, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 130, shown.stderr
    assert shown.stderr.startswith("interrupted")
    assert len(shown.stderr.splitlines()) == 1


def test_an_interrupt_between_the_board_and_the_submission_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from flows.execution import scheduler

    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scheduler.run_stage, "with_options", interrupted)
    step = PlanStep("corpus", "will run", (), (), (), StageMeta())
    cancelled = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        scheduler.run_stages(tmp_path, Plan("corpus", (step,)), {}, cancelled)
    assert cancelled.is_set()


def test_a_row_over_several_lines_is_told_how_to_stand_on_one(tmp_path: Path) -> None:
    for clip in CLIPS.glob("*.mp4"):
        shutil.copy(clip, tmp_path / "a.mp4")
        shutil.copy(clip, tmp_path / "b.mp4")
    rows = (
        '{"video": "a.mp4", "caption": "It moves.",\n "licence": "CC0",\n "source": "s"}\n{"video": "b.mp4", "caption":'
        ' nope}\n{"x"\n'
    )
    (tmp_path / "annotations.jsonl").write_text(rows)
    shown = vidbridge("data", "check", str(tmp_path), "--all", cwd=tmp_path, COLUMNS="300")
    assert shown.returncode == 1
    assert "0 accepted; 3 rows read: 0 used, 3 rejected" in shown.stdout
    said = (
        "a row must stand on one line, and this one takes lines 1 to 3; write it on one: jq -c . annotations.jsonl >"
        " lines-"
    )
    assert f"annotations.jsonl:1: {said}" in shown.stdout
    assert "annotations.jsonl:4: not JSON: Expecting value at column 31" in shown.stdout
    assert "annotations.jsonl:5: not JSON: Expecting ':' delimiter at column 5" in shown.stdout
    assert "a.mp4: no-annotation" not in shown.stdout, "its row names it"


@pytest.mark.parametrize("name", [b"caf\xe9.mp4", b"notes-\xff.txt"])
def test_a_name_that_is_not_utf_8_is_told(name: bytes, done: Path) -> None:
    text = (done / "params.yaml").read_text()
    (done / "params.yaml").write_text(
        text.replace("source: data/corpus", "source: videos").replace(
            "judge: {kind: rule,", "judge: {kind: rule_on_real_text,"
        )
    )
    folder = done / "videos"
    folder.mkdir()
    (folder / "annotations.jsonl").write_text('{"video": "a.mp4"}\n')
    (folder / os.fsdecode(name)).write_bytes(b"x")
    shown = commands(done, [({}, ["run"]), ({}, ["plan"]), ({}, ["data", "check", "videos"])], COLUMNS="300")
    escaped = name.decode("ascii", "backslashreplace")
    for one in shown:
        assert one.returncode == 1, one.said
        assert "Traceback" not in one.said, one.said
        assert f"{escaped}: its name is not UTF-8, and DVC stores no such name; rename it" in one.said


def test_names_and_text_of_files_are_printed_as_text(tmp_path: Path) -> None:
    hostile = "[red][bold\x1b]0;T\x07:dog:\u202e\x9b.mp4"
    (tmp_path / hostile).write_text("no video")
    rows = [{"video": hostile}, {"video": "[red]gone\x1b[2J\n.mp4"}, {"video": "x.mp4", "\x1b[31mfield": 1}]
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = vidbridge("data", "check", str(tmp_path), "--all", cwd=tmp_path, COLUMNS="300")
    assert shown.returncode == 1
    assert not [character for character in shown.said if character in ESCAPES]
    assert r"[red][bold\x1b]0;T\x07:dog:\u202e\x9b.mp4" in shown.stdout
    assert "🐶" not in shown.stdout


def test_on_a_console_strings_are_text_and_styles_are_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.table import Table
    from rich.text import Text

    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://bob:CANARY7@host/db")
    table = Table(title="[red]title[/red] :dog:")
    table.add_column("[bold]head")
    table.add_row("[/red] \x1b[31m \u202e http://u:CANARY7@h")
    table.add_row(Text("\x1b]0;T", "bold"))
    out = show.console()
    assert out.width == show.WIDE
    out.print(table)
    out.print("[/] :dog: \x1b CANARY7", soft_wrap=True)
    show.say("[/] :dog: \x1b CANARY7\nnext")
    show.show_where(out, Path("/nowhere"), scored=True)
    said = capsys.readouterr().out + show.as_text(table)
    assert "runs and versions  postgresql://bob:***@host/db" in said
    assert not [character for character in said if character in ESCAPES]
    assert "CANARY" not in said
    for text in (
        "[red]title[/red] :dog:",
        "[bold]head",
        r"[/red] \x1b[31m \u202e http://u:***@h",
        r"[/] :dog: \x1b ***",
    ):
        assert text in said
    monkeypatch.setenv("COLUMNS", "77")
    assert show.console().width == 77


def test_no_door_prints_past_the_one_that_makes_text_fit() -> None:
    """A console of rich's own, markup that is read out of a string, or a bare print of what is not
    ours would be such a door.
    """
    for path in sorted((ROOT / "flows").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "markup=True" not in text, path
        assert "from_markup" not in text, path
        if path.name != "show.py":
            assert "Console(" not in text.replace("from rich.console import Console", ""), (
                f"{path}: take show.console()"
            )
    for path in sorted((ROOT / "stages").rglob("*.py")):
        assert "rich.console import Console" not in path.read_text(encoding="utf-8"), path


def test_a_log_line_of_a_stage_is_text(done: Path) -> None:
    (done / "learning.py").write_text("rate = 2\n")
    work = (done / "work.py").read_text()
    told = "print('\\x1b]0;T\\x07 postgresql://bob:CANARY@host/db', flush=True)\n"
    (done / "work.py").write_text(
        work.replace('print(f"{name} done", flush=True)', told + 'print(f"{name} done", flush=True)')
    )
    lines: list[str] = []
    reproduce.reproduce(done, "corpus", lines.append)
    assert r"\x1b]0;T\x07 postgresql://bob:***@host/db" in lines


def test_the_clock_of_a_name_search_is_short(tmp_path: Path) -> None:
    from flows.content.names import unstorable_names

    for n in range(2000):
        (tmp_path / f"{n}.mp4").touch()
    began = time.process_time()
    assert list(unstorable_names(tmp_path)) == []
    assert time.process_time() - began < 5
