"""The benchmark of GPUs on a CPU, at tiny size by the same code, where packages are missing; its
schedule with a stand-in for the process that measures; and which tests a GPU is given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.page import header, page
from benchmarks.gpu.parts import BY_NAME, PARTS, Part, explained
from benchmarks.gpu.phases import _in_half, easyr1_tokens
from benchmarks.gpu.schedule import Outcome, Workers
from benchmarks.gpu.timing import union_s
from stages.lib.inference import prefix_attention
from stages.lib.models.packing import Continuation
from stages.lib.models.processor import EncodedPrompt, VideoFields
from tests.support import gpu
from tests.support.checkout import IN_CHECKOUT, ROOT
from tests.support.processes.bare import bare_python

#: What a machine that is lent is known to lack.
MISSING = ("trl", "datasets", "pydantic", "av", "ffmpeg-python", "imageio-ffmpeg", "decord", "mlflow", "prefect", "dvc",
           "deepspeed")  # fmt: skip
FIRST, SECOND, THIRD = BY_NAME["vision tower 3B"], BY_NAME["decoding 3B"], BY_NAME["log-probabilities 3B"]


def run(python: Path | str, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "benchmarks.gpu", "--dry", "--out", str(out), *arguments]
    return subprocess.run(command, cwd=out.parent, env=IN_CHECKOUT, capture_output=True, text=True, check=False)


def test_without_trl_pydantic_and_video_readers_the_parts_that_need_none_are_measured(tmp_path: Path) -> None:
    python = bare_python(tmp_path / "bare", MISSING)
    done = run(python, tmp_path / "out", "--only", THIRD.name, "--only", "GRPO 3B, all weights")
    log = (tmp_path / "out/log.txt").read_text()
    assert done.returncode == 0, done.stderr + log
    first, second = map(json.loads, (tmp_path / "out/results.jsonl").read_text().splitlines())
    found = dict(first["rows"])
    assert found["prompt once - a row a reply, float32"]["largest difference"] < 1e-5
    assert 0 < found["prompt once, bf16 - float32"]["largest difference"] < 0.05
    assert 0 < found["decoding, bf16 - float32"]["largest difference"] < 0.05
    assert second["why"] == "lacks trl, datasets, pydantic"
    written = (tmp_path / "out/gpu.md").read_text()
    assert "- GRPO 3B, all weights: lacks trl, datasets, pydantic" in written
    assert "**Dry run**" in written
    assert "no GPU" in written or torch.cuda.is_available()


@pytest.mark.slow
def test_every_part_runs_dry(tmp_path: Path) -> None:
    done = run(sys.executable, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {line["part"]: line["why"] for line in lines} == {part.name: "" for part in PARTS}
    assert all(line["rows"] for line in lines)
    assert done.returncode == 0


#: Ends in the middle of one part, is silent about another, and answers the others.
STAND_IN = f"""
import json, os, sys, time
print(json.dumps({{"card": None, "cuda": None}}), flush=True)
for name in map(str.strip, sys.stdin):
    if name == {FIRST.name!r}: os._exit(9)
    if name == {SECOND.name!r}: time.sleep(60)
    print(json.dumps({{"rows": [["whole", {{"s": 1.5, "pid": os.getpid()}}]], "seconds": 2.0}}), flush=True)
"""


def scheduled(parts: list[Part], seconds: float, tmp_path: Path) -> list[Outcome]:
    with Workers(tmp_path / "log", dry=True, command=[sys.executable, "-c", STAND_IN]) as workers:
        assert workers.machine() == {"card": None, "cuda": None}
        return list(workers.outcomes(parts, time.monotonic() + seconds))


def test_a_part_that_takes_its_process_with_it_is_a_line_and_the_next_has_a_new_process(tmp_path: Path) -> None:
    before, broken, behind = scheduled([THIRD, FIRST, THIRD], 30, tmp_path)
    assert broken.failed
    assert broken.why == "its process ended with status 9"
    assert (before.failed, behind.failed) == (False, False)
    assert before.rows[0][1]["pid"] != behind.rows[0][1]["pid"]


def test_a_part_that_overruns_the_budget_is_ended_and_what_is_left_is_named(tmp_path: Path) -> None:
    measured, late, left = scheduled([THIRD, SECOND, FIRST], 2, tmp_path)
    assert not measured.why
    assert late.why.startswith("cut off when the budget ended")
    assert left.why.startswith("no room: foreseen")
    assert not left.failed
    written = page(header({"card": "H", "cuda": "13"}, [], dry=False), [measured, late, left], [BY_NAME["replies 7B"]])
    assert "| whole | 1.5 |" in written
    assert written.endswith(f"- decoding 3B: {late.why}\n- vision tower 3B: {left.why}\n- replies 7B: not reached\n")


def test_names_are_distinct_and_every_part_is_explained() -> None:
    assert len(BY_NAME) == len(PARTS)
    assert all(len(explained(part.work)) > 30 for part in PARTS)


def test_overlapping_kernels_count_once() -> None:
    assert union_s([(5, 7), (0, 2), (1, 3), (1, 2)]) == 5


def test_a_prompt_counts_once_for_each_of_its_rollouts() -> None:
    video = VideoFields(torch.zeros(0), torch.zeros(0), None)
    group = Continuation(EncodedPrompt((1, 2, 3), video), [[4], [5, 6]])
    assert easyr1_tokens([group]) == (3 + 1) + (3 + 2)


def test_attention_in_half_precision_is_that_of_decoding_within_rounding() -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(2, 1, 4, 8), *torch.randn(2, 2, 1, 5, 8).bfloat16()
    bias = torch.zeros(1, 1, 1, 3)
    bias[..., 1] = torch.finfo(torch.float32).min
    ways = (prefix_attention._attended(query, keys, values, bias), _in_half(query, keys, values, bias))
    exact, half = (part.values / part.total for part in ways)
    torch.testing.assert_close(half, exact, atol=0.03, rtol=0)
    assert not torch.equal(half, exact)


def pytest_run(at: Path, python: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "pytest", "-p", "tests.support.processes.collecting", "-rs", *arguments]
    # Options of the run that this test is part of are not those of the one that it starts.
    environ = {name: value for name, value in IN_CHECKOUT.items() if name != "PYTEST_ADDOPTS"}
    return subprocess.run(command, cwd=at, env=environ, capture_output=True, text=True, check=False)


def test_what_imports_a_missing_package_is_skipped_and_what_is_wrong_here_is_not(tmp_path: Path) -> None:
    (tmp_path / "test_gone.py").write_text("import no_such_package.part\n")
    (tmp_path / "test_within.py").write_text(
        "def test_needs_it():\n    import no_such_package\ndef test_needs_nothing():\n    pass\n"
    )
    (tmp_path / "test_wrong.py").write_text("from tests.support import no_such_module\n")
    done = pytest_run(tmp_path, sys.executable, "-c", os.devnull, "-p", "no:cacheprovider", "--noconftest",
                      "--import-mode=importlib", "--continue-on-collection-errors", str(tmp_path))  # fmt: skip
    assert done.stdout.count("no_such_package is not installed here") == 2, done.stdout
    assert "1 passed, 2 skipped, 1 error" in done.stdout, done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_tests_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main() == 0
    assert "skipped: torch sees no GPU here" in capsys.readouterr().out


def test_everything_marked_gpu_is_run_there() -> None:
    marked = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")
              if gpu.MARK in path.read_text() and path != Path(__file__)]  # fmt: skip
    assert marked
    assert [file for file in marked if not file.startswith(tuple(gpu.selected()))] == []


@pytest.mark.slow
def test_without_video_readers_and_mlflow_the_tests_for_a_gpu_are_collected(tmp_path: Path) -> None:
    lacking = [name for name in MISSING if name not in ("trl", "datasets", "pydantic")]
    done = pytest_run(
        tmp_path,
        bare_python(tmp_path / "bare", lacking),
        *("-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}", "--collect-only", "-m", "not slow and not ops"),
        *(str(ROOT / folder) for folder in gpu.FOLDERS),
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "tests/stages/lib/models/test_gpu.py" in done.stdout
    assert "av is not installed here" in done.stdout
