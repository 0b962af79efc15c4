"""A small project: the real parameters and the shape of the real pipeline, with stages that take no
time."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import psutil

from flows.repro.plan import make_plan
from tests.support.checkout import ROOT
from tests.support.projects.repository import commit, git

#: Acts as every stage: `work.py KIND NAME OUT` writes what tracking and the gate expect of it.
#: `knobs.json` may make it slow or fail.
WORK = """
import json, os, subprocess, sys, time
from pathlib import Path

kind, name, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
knobs = json.loads(Path("knobs.json").read_text()).get(name, {}) if Path("knobs.json").is_file() else {}
log = Path(os.environ["VIDBRIDGE_PROJECT"]) / ".vidbridge" / "attempts.txt"
log.parent.mkdir(exist_ok=True)
before = log.read_text().split() if log.is_file() else []
with log.open("a") as file:
    file.write(name + "\\n")
for _ in range(knobs.get("children", 0)):
    child = subprocess.Popen(["setsid", sys.executable, "-c", "import time; time.sleep(600)"])
    with (log.parent / "children.txt").open("a") as file:
        file.write(f"{child.pid}\\n")
print(f"{name} starts with {sys.executable}", flush=True)
time.sleep(knobs.get("seconds", 0))
if before.count(name) < knobs.get("failures", 0):
    print("it broke", flush=True)
    sys.exit(knobs.get("status", 1))
out.mkdir(parents=True, exist_ok=True)
if kind == "model":
    (out / "final").mkdir()
    (out / "final" / "config.json").write_text(name)
    row = {"stage": name, "step": 3, "path": "final", "final": True, "metrics": {"loss": 0.5}}
    (out / "checkpoints.jsonl").write_text(json.dumps(row) + "\\n")
    watched = "length_reward_correlation empty_thinking enumeration keyword_stuffing"
    gauges = {f"gauge/{name}": 0.0 for name in f"{watched} zero_variance_groups blank_video".split()}
    (out / "history.jsonl").write_text(json.dumps({"step": 3} | gauges) + "\\n")
elif kind == "scores":
    mean = {"base": 0.1, "cold-start": 0.6, "bridge": 0.7}.get(name, 0.8)
    task = {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "samples": 8, "format": 1.0}
    task |= {"blank": 0.1, "blank_high": 0.2, "shuffled": 0.3, "shuffled_high": 0.4}
    task |= {"unjudged": 0, "native": 100 * mean}
    scores = {"row": name, "digest": "d", "split": "test", "samples": 8, "mean": mean, "format": 1.0}
    scores |= {"blank_mean": 0.1, "shuffled_mean": 0.3}
    scores["tasks"] = {"mcqa": task}
    (out / "scores.json").write_text(json.dumps(scores))
elif kind == "baselines":
    each = {"mean": 0.2, "low": 0.1, "high": 0.3, "samples": 8, "unjudged": 0, "format": 1.0, "native": 20.0}
    scores = {"digest": "d", "split": "test", "random": {"mean": 0.2}, "constant": {"mean": 0.2}}
    scores["constant_replies"] = {"mcqa": "A"}
    (out / "scores.json").write_text(json.dumps(scores | {"tasks": {"mcqa": {"random": each, "constant": each}}}))
else:
    (out / "files.txt").write_text(name)
print(f"{name} done", flush=True)
"""

PIPELINE = """
stages:
  corpus:
    cmd: python work.py data corpus data/corpus
    deps: [work.py]
    params: [corpus.size_px]
    outs: [data/corpus]
  ingest:
    cmd: python work.py data ingest data/clips
    deps: ["${ingest.source}", work.py]
    params: [seed, ingest]
    outs: [data/clips]
    meta: {kind: data, retries: 1, retry_delay_s: 0, timeout_s: 60}
  base:
    cmd: python work.py model base models/base
    deps: [data/clips]
    params: [model]
    outs: [models/base]
    meta: {kind: train}
  sft:
    foreach: ${sft}
    do:
      cmd: python work.py model ${key} models/${key}
      deps: ["models/${item.init}"]
      params: ["sft.${key}"]
      outs: ["models/${key}"]
      meta: {kind: train, retries: 1, retry_delay_s: 0}
  grpo:
    foreach: ${grpo}
    do:
      cmd: python work.py model ${key} models/${key}
      deps: ["models/${item.init}", learning.py]
      params: ["grpo.${key}"]
      outs: ["models/${key}"]
      meta: {kind: train, retries: 1, retry_delay_s: 0, timeout_s: 120}
  baselines:
    cmd: python work.py baselines baselines scores/baselines
    deps: [data/clips]
    outs: [scores/baselines]
    meta: {kind: evaluate}
  evaluate:
    foreach: ${evaluation.of}
    do:
      cmd: python work.py scores ${item} scores/${item}
      deps: ["models/${item}"]
      outs: ["scores/${item}"]
      meta: {kind: evaluate}
  summary:
    cmd: python work.py reports summary reports
    deps: [scores/baselines, scores/base, scores/cold-start, scores/bridge, scores/general]
    outs: [reports]
"""


def make_small_project(root: Path) -> Path:
    """A committed project in which nothing has run."""
    (root / ".dvc").mkdir(parents=True)
    for name in ("params.yaml", ".gitignore", ".dvc/config"):
        shutil.copy(ROOT / name, root / name)
    (root / "work.py").write_text(WORK)
    (root / "learning.py").write_text("rate = 1\n")
    (root / "dvc.yaml").write_text(PIPELINE)
    git(root, "init", "-q", "-b", "main")
    commit(root, "start")
    return root


def states(root: Path, target: str = "summary") -> dict[str, str]:
    return {step.name: step.state for step in make_plan(root, target).steps}


def why(root: Path, stage: str) -> tuple[str, ...]:
    return next(step.why for step in make_plan(root).steps if step.name == stage)


def knobs(root: Path, **table: dict[str, float]) -> None:
    (root / "knobs.json").write_text(json.dumps({name.replace("_", "-"): value for name, value in table.items()}))


def children(root: Path, count: int, wait_s: float = 30) -> list[int]:
    """The processes that the stage's command left in sessions of their own, once they are all
    there."""
    path = root / ".vidbridge/children.txt"
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if path.is_file() and len(found := path.read_text().split()) == count:
            return [int(pid) for pid in found]
        time.sleep(0.05)
    raise AssertionError(f"no {count} children within {wait_s} s")


def all_gone(pids: list[int], wait_s: float = 20) -> bool:
    deadline = time.monotonic() + wait_s
    while any(psutil.pid_exists(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
