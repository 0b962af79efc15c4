"""A small real project for tests of the registry: git, DVC with a local remote, stages that write
model folders and scores."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.support.checkout import ROOT
from tests.support.projects.repository import commit, git

ROWS = {"cold-start": ("sft", "base"), "bridge": ("grpo", "cold-start"), "general": ("grpo", "bridge")}

#: What the stages run: stdlib only, deterministic, each a few milliseconds.
MAKE = """
import hashlib, json, sys
from pathlib import Path

what, row, init = (sys.argv[1:] + ["", ""])[:3]

def model(folder, text):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny", "trained": text}))
    (folder / "model.safetensors").write_bytes(hashlib.sha256(text.encode()).digest() * 65536)  # 2 MiB

def trained(row):
    return json.loads(Path(f"models/{row}/final/config.json").read_text())["trained"]

def lines(rows):
    return "".join(json.dumps(row) + "\\n" for row in rows)

SAMPLES = [(task, f"{task}/{n}", f"clip-{n}") for task in ("caption", "mcqa") for n in range(20)]

if what == "samples":
    folder = Path("data/samples/train")
    folder.mkdir(parents=True)
    (folder / "caption.jsonl").write_text(Path("source.txt").read_text())
    (folder.parent / "test").mkdir()
    for name in ("caption", "mcqa"):
        rows = [
            {"sample_id": sample, "clip_id": clip, "task": name, "split": folder.name, "sampled_frames": 2,
             "question": "?", "reference": "!",
             "timeline": {"rate": "8", "segments": [{"clip_id": clip, "span": {"start": 0, "stop": 2}}]}}
            for task, sample, clip in SAMPLES if task == name
        ]
        (folder.parent / "test" / f"{name}.jsonl").write_text(lines(rows))
elif what == "base":
    model(Path("models/base/final"), "base")
elif what == "train":
    text = f"{trained(init)} > {row} {Path('rates.json').read_text()}"
    out = Path("models") / row
    rows = []
    for step, path in ((5, "checkpoint-5"), (10, "final")):
        model(out / path, f"{text} {step}")
        rows.append({"stage": f"x@{row}", "step": step, "path": path, "final": path == "final"})
        rows[-1]["metrics"] = {"reward": step / 10}
    (out / "checkpoints.jsonl").write_text(lines(rows))
    history = [{"step": step, "reward": step / 10} for step in range(1, 11)]
    if row != "cold-start":
        watched = "empty_thinking enumeration keyword_stuffing zero_variance_groups blank_video".split()
        for logged in history:
            logged |= {f"gauge/{name}": 0.0 for name in watched}
            logged["gauge/length_reward_correlation"] = logged["step"] / 100
    (out / "history.jsonl").write_text(lines(history))
elif what == "evaluate":
    means = json.loads(Path("means.json").read_text())
    out = Path("scores") / row
    out.mkdir(parents=True)
    if row == "baselines":
        each = {"low": 0.05, "high": 0.2, "samples": 20, "unjudged": 0, "format": 1.0, "native": 10.0}
        task = {"random": {"mean": 0.1, **each}, "constant": {"mean": 0.16, **each}}
        card = {"schema_version": 1, "digest": means["digest"], "split": "test",
                "random": {"mean": 0.1}, "constant": {"mean": 0.16}, "constant_replies": {"caption": "x", "mcqa": "x"},
                "tasks": {"caption": task, "mcqa": task}}
    else:
        task = {"mean": means[row], "low": means[row] - 0.02, "high": means[row] + 0.02, "samples": 20,
                "unjudged": 0, "format": 1.0, "native": 100 * means[row],
                "blank": 0.05, "shuffled": 0.3, "blank_high": 0.1, "shuffled_high": 0.4}
        card = {"schema_version": 1, "row": row, "digest": means["digest"], "split": "test", "samples": 40,
                "mean": means[row], "blank_mean": 0.05, "shuffled_mean": 0.3, "format": 1.0,
                "tasks": {"caption": task, "mcqa": task}}
        right = round(20 * means[row])
        found = [(task, sample, int(sample.split("/")[1]) < right) for task, sample, _ in SAMPLES]
        scores = [
            {"sample_id": sample, "task": task, "reply": "", "format_ok": True, "value": hit}
            for task, sample, hit in found
        ]
        (out / "predictions.jsonl").write_text(lines(scores))
    (out / "scores.json").write_text(json.dumps(card))
"""

MEANS = '{"digest": "d1", "base": 0.1, "cold-start": 0.6, "bridge": 0.65, "general": 0.8}\n'


def dvc(root: Path, *arguments: str) -> str:
    """What DVC said, without anyone's git configuration; it must end well."""
    environment = os.environ | {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "DVC_NO_ANALYTICS": "1",
    }
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"dvc {' '.join(arguments)} in {root} ended with {done.returncode}: {done.stderr}"
    return done.stdout


def pipeline() -> dict[str, object]:
    python = sys.executable
    stages: dict[str, object] = {
        "synthesize": {"cmd": f"{python} make.py samples", "deps": ["source.txt"], "outs": ["data/samples"]},
        "base": {"cmd": f"{python} make.py base", "params": ["seed"], "outs": ["models/base/final"]},
        "baselines": {
            "cmd": f"{python} make.py evaluate baselines",
            "deps": ["means.json", "data/samples"],
            "outs": ["scores/baselines"],
        },
    }
    for kind in ("sft", "grpo"):
        rows = {row: {"init": init} for row, (table, init) in ROWS.items() if table == kind}
        stages[kind] = {
            "foreach": rows,
            "do": {
                "cmd": f"{python} make.py train ${{key}} ${{item.init}}",
                "deps": ["make.py", "rates.json", "data/samples", "models/${item.init}/final"],
                "params": [f"{kind}.${{key}}"],
                "outs": ["models/${key}"],
            },
        }
    stages["evaluate"] = {
        "foreach": ["base", *ROWS],
        "do": {
            "cmd": f"{python} make.py evaluate ${{item}}",
            "deps": ["means.json", "models/${item}/final", "data/samples"],
            "outs": ["scores/${item}"],
        },
    }
    return {"stages": stages}


def lay_out(root: Path) -> None:
    """Put the project into the folder ``root``, a repository in which nothing has run or been
    committed; it has no DVC remote."""
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")
    (root / ".gitignore").write_text("/.vidbridge/\n/data/\n/models/\n/scores/\n")
    (root / "make.py").write_text(MAKE)
    (root / "source.txt").write_text("clips\n")
    (root / "rates.json").write_text("1\n")
    (root / "means.json").write_text(MEANS)
    (root / "dvc.yaml").write_text(yaml.safe_dump(pipeline()))
    git(root, "init", "-q", "-b", "main")
    dvc(root, "init", "-q")
    (root / ".dvc" / "config").write_text("[core]\n    autostage = false\n    analytics = false\n")


def make(root: Path) -> None:
    """Put the project into the folder ``root``, as it is after `dvc repro` and a commit."""
    lay_out(root)
    (root / ".dvc" / "config").write_text(
        "[core]\n    remote = local\n    autostage = false\n    analytics = false\n['remote \"local\"']\n    url ="
        " ../.vidbridge/remote\n"
    )
    dvc(root, "repro", "-q")
    commit(root, "first run")
