"""A small project with one real registered model: a tiny Qwen2.5-VL that has learned to name a video's colour. For what is done
with versions.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from learning.tiny_parts import COLOURS, REPLIES, tiny
from tracking.conftest import commit, dvc, run

from stages.domain.frames import Frames
from stages.domain.prompts import render_prompt
from stages.learning.factory import save_model
from stages.learning.processor import encode_prompts, training_batch
from stages.params import load_params
from stages.tracking.registry import register
from stages.tracking.store import open_client
from stages.tracking.versions import CHAMPION
from stages.video.bounded import Wanted, load_bounded
from stages.video.edits import load_video
from stages.video.encoder import ffmpeg_binary

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "tests/data/clips/bigbuckbunny.mp4"
MODEL = "vidbridge-tiny"
QUESTION = "what colour is it ?"
URI = f"models:/{MODEL}@{CHAMPION}"


def make_videos(folder: Path) -> None:
    """`red.mp4`, `green.mp4` and `blue.mp4`: two seconds of it."""
    folder.mkdir(parents=True)
    for colour in COLOURS:
        source = ["-f", "lavfi", "-i", f"color={colour}:size=32x32:rate=8:duration=2", "-pix_fmt", "yuv420p"]
        subprocess.run([ffmpeg_binary(), "-v", "error", *source, str(folder / f"{colour}.mp4")], check=True, timeout=60)


def save_taught_model(videos: Path, folder: Path) -> None:
    """Overfit a tiny model, in a second or two, to say what colour the videos of `make_videos` are."""
    params = load_params(ROOT / "params.yaml")
    model, processor = tiny("qwen2_5_vl")
    prompt = render_prompt(QUESTION, "caption", params.prompt)
    shown = [(prompt, [load_video(videos / f"{colour}.mp4", params.synthesize.sampled_frames)]) for colour in COLOURS]
    batch = training_batch(processor, encode_prompts(processor, shown), REPLIES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(60):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_model(model.eval(), processor, folder)


def make_project(root: Path) -> Path:
    """git, DVC with a remote, one stage that gives a model, version 1 of it registered and champion."""
    root.mkdir()
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")
    (root / ".gitignore").write_text("/.vidbridge/\n/models/\n/made/\n/videos/\n")
    make_videos(root / "videos")
    save_taught_model(root / "videos", root / "made")
    copy = f"{sys.executable} -c \"import shutil; shutil.copytree('made', 'models/base/final')\""
    stage = {"cmd": copy, "deps": ["made"], "params": ["seed", "model", "prompt"], "outs": ["models/base/final"]}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"base": stage}}))
    run(root, "git", "init", "-q", "-b", "main")
    dvc(root, "init", "-q")
    (root / ".dvc" / "config").write_text(
        "[core]\n    remote = local\n    analytics = false\n['remote \"local\"']\n    url = ../.vidbridge/remote\n"
    )
    dvc(root, "repro", "-q")
    commit(root, "a model")
    assert [version.number for version in register(root).created] == [1]
    open_client(root).set_registered_model_alias(MODEL, CHAMPION, "1")
    return root


def environment(root: Path, **changes: str) -> dict[str, str]:
    """For a process in ``root``: nothing of the caller's own servers, this checkout's code."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("VIDBRIDGE_", "MLFLOW_", "GIT_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    database = f"sqlite:///{root / '.vidbridge/mlflow.db'}"
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {**inherited, "PATH": path, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": database, **quiet, **changes}


def hang_on_blue(wanted: Wanted) -> Frames:
    """Reads a video as a server does, and does not come back from the blue one."""
    if wanted.path.name == "blue.mp4":
        time.sleep(600)
    return load_bounded(wanted)
