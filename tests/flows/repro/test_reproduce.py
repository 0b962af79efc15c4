"""Running one stage: its output, its end, and that no process of it is left."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from flows.errors import StageCancelled, StageFailed, StageTimedOut
from flows.processes.stream import Lines
from flows.repro import reproduce
from tests.support.projects.flow import all_gone, children, knobs


def test_each_line_is_handed_over_and_dvc_commits(project: Path) -> None:
    lines: list[str] = []
    result = reproduce.reproduce(project, "corpus", lines.append, {"EXTRA": "1"})
    assert result.outcome == "ran"
    assert lines[:2] == ["Running stage 'corpus':", "> python work.py data corpus data/corpus"]
    assert "corpus done" in lines
    assert [line for line in lines if "git add" in line or "dvc push" in line] == []
    assert reproduce.reproduce(project, "corpus", lines.append).outcome == "unchanged"
    text = (project / "work.py").read_text()
    (project / "work.py").write_text(text + "\n")
    reproduce.reproduce(project, "corpus", lines.append)
    (project / "work.py").write_text(text)
    assert reproduce.reproduce(project, "corpus", lines.append).outcome == "cached"


def test_a_failure_says_the_commands_own_status_and_its_last_lines(project: Path) -> None:
    knobs(project, corpus={"failures": 1, "status": 7})
    with pytest.raises(StageFailed) as caught:
        reproduce.reproduce(project, "corpus", lambda line: None)
    assert caught.value.exit_code == 7
    assert "it broke" in str(caught.value)


def test_a_stage_that_takes_too_long_is_ended_with_all_its_descendants(project: Path) -> None:
    knobs(project, corpus={"seconds": 600, "children": 2})
    with pytest.raises(StageTimedOut, match="timeout_s 3"):
        reproduce.reproduce(project, "corpus", lambda line: None, timeout_s=3)
    assert all_gone(children(project, 2), 1)


def test_a_cancelled_stage_ends_at_once_and_the_project_is_not_left_locked(project: Path) -> None:
    knobs(project, corpus={"seconds": 600, "children": 2})
    cancelled = threading.Event()

    def cancel() -> None:
        children(project, 2)
        cancelled.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(StageCancelled):
        reproduce.reproduce(project, "corpus", lambda line: None, cancelled=cancelled)
    thread.join()
    assert all_gone(children(project, 2), 1)
    knobs(project)
    assert reproduce.reproduce(project, "corpus", lambda line: None).outcome == "ran"


def test_what_a_stage_leaves_running_is_ended_with_it(project: Path) -> None:
    knobs(project, corpus={"children": 1})
    reproduce.reproduce(project, "corpus", lambda line: None)
    assert all_gone(children(project, 1), 1)


def test_of_a_progress_bar_the_log_gets_a_line_now_and_then_and_the_last() -> None:
    lines: list[str] = []
    reader = Lines(lines.append, every_s=3600)
    for step in range(100):
        reader.feed(f"\rtrain: {step}%".encode())
    reader.feed("\rtrain: 100%\nplain ä".encode()[:-1])
    reader.feed("ä".encode()[-1:] + b"\r\nend")
    reader.close()
    assert lines == ["train: 0%", "train: 100%", "plain ä", "end"]
