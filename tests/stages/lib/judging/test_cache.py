"""Cache of a judge's answers: one judge each, shared by processes, damaged."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.runtime.endpoint.settings import JudgeError
from tests.support.builders import SAMPLES
from tests.support.checkout import ROOT
from tests.support.judges.client import endpoint_judge
from tests.support.judges.server import Fault, JudgeServer

DARK = SAMPLES["dark_event_infer"]


@pytest.mark.parametrize(
    "changes", [{"revision": "r2"}, {"model": "other"}, {"temperature": 0.5}, {"seed": 1}, {"max_tokens": 100}]
)
def test_another_judge_is_asked_anew(server: JudgeServer, tmp_path: Path, changes: dict[str, object]) -> None:
    endpoint_judge(server, tmp_path).covers(DARK, "a")
    endpoint_judge(server, tmp_path, max_unavailable=0.5).covers(DARK, "a")
    assert server.requests == 1, "what may be unavailable changes no verdict"
    endpoint_judge(server, tmp_path, **changes).covers(DARK, "a")
    assert server.requests == 2


ASK = """
from tests.support.builders import SAMPLES
from tests.support.judges.client import judge_params
from stages.lib.judging.endpoint import EndpointJudge
from stages.runtime.endpoint.settings import endpoint_settings
from stages.lib.judging.prompts import Question, ask_covers
judge = EndpointJudge(judge_params(), endpoint_settings())
answers = judge.ask([ask_covers(SAMPLES["dark_event_infer"], f"answer {{n}}") for n in range({count})])
print(sum(answer.worth for answer in answers.values()), len(answers))
"""


def ask_elsewhere(server: JudgeServer, folder: Path, count: int) -> subprocess.Popen[str]:
    code = ASK.format(count=count)
    environ = {
        **os.environ,
        **server.environment(VIDBRIDGE_JUDGE_CACHE=str(folder / "judge"), VIDBRIDGE_JUDGE_CONCURRENCY="4"),
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_with_one_cache_ask_once(server: JudgeServer, tmp_path: Path) -> None:
    server.pause_s = 0.05
    processes = [ask_elsewhere(server, tmp_path, 40) for _ in range(2)]
    for process in processes:
        out, errors = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "0.0 40\n"), errors
    assert server.requests == len(server.times_asked()) == 40


def test_what_a_killed_process_was_asking_is_asked_by_the_other(server: JudgeServer, tmp_path: Path) -> None:
    server.faults.append(Fault(pause_s=60))
    killed = ask_elsewhere(server, tmp_path, 1)
    for _ in range(600):
        if server.requests:
            break
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    out, errors = ask_elsewhere(server, tmp_path, 1).communicate(timeout=60)
    assert out == "0.0 1\n", errors
    assert server.requests == 2


def test_a_damaged_cache_says_what_to_delete(server: JudgeServer, tmp_path: Path) -> None:
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge/answers.db").write_bytes(b"no database" * 1000)
    with pytest.raises(JudgeError, match=r"VIDBRIDGE_JUDGE_CACHE: .*answers.db: .*delete that file"):
        endpoint_judge(server, tmp_path).covers(DARK, "x")
