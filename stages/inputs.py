"""What the verbs load: samples of a split, the frames they show, and the folder that a training run can resume from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from stages import layout
from stages.domain.records import SPLITS, Clip, Sample, Split, TaskName
from stages.judging.rule import RuleJudge
from stages.params import Params, digest
from stages.rows import iterate_rows, read_rows
from stages.video.edits import FrameLoader

#: What decoded frames may take in memory, in MB, unless VIDBRIDGE_FRAME_CACHE_MB says otherwise.
FRAME_CACHE_MB = 512


class InputError(RuntimeError):
    """Something that a stage needs is not there; the message says what to run."""


def load_samples(split: Split, tasks: Iterable[TaskName]) -> list[Sample]:
    """The samples of these tasks, in the order they were written.

    Raises:
        InputError: a task has no sample in this split.
    """
    samples: list[Sample] = []
    for task in tasks:
        path = layout.SAMPLES / split / f"{task}.jsonl"
        rows = read_rows(path, Sample) if path.exists() else []
        if not rows:
            raise InputError(
                f"{path}: no {task} sample in the {split} split; see {layout.SAMPLES / 'rejects.jsonl'} for what was set aside and why"
            )
        samples += rows
    return samples


def load_clips() -> dict[str, Clip]:
    return {clip.clip_id: clip for clip in iterate_rows(layout.CLIPS / "manifest.jsonl", Clip)}


def frame_loader(params: Params) -> FrameLoader:
    """Frames of samples, decoded from the source folder and kept in memory up to a bound."""
    megabytes = int(os.environ.get("VIDBRIDGE_FRAME_CACHE_MB", FRAME_CACHE_MB))
    return FrameLoader(load_clips(), Path(params.ingest.source), megabytes * 1_000_000)


def judge(params: Params) -> RuleJudge:
    return RuleJudge(full_share=params.judge.full_share, partial_share=params.judge.partial_share)


def samples_present() -> dict[Split, list[TaskName]]:
    """Which tasks have samples in which split, as synthesize counted them."""
    made = json.loads((layout.SAMPLES / layout.SUMMARY_FILE).read_text(encoding="utf-8"))["samples"]
    return {split: [task for task, count in made[split].items() if count] for split in SPLITS}


def scratch_folder(stage: str, settings: Sequence[object], inputs: Sequence[Path], code: Sequence[Path]) -> Path:
    """Where this very run keeps what it can resume from: keyed by stage, parameters and the content of its inputs.

    Checkpoints of another code are not resumed unless VIDBRIDGE_RESUME_ACROSS_CODE is set: they are deleted, and said to be.
    """
    lock = Path("dvc.lock")
    stages = (yaml.safe_load(lock.read_text(encoding="utf-8")) or {}).get("stages", {}) if lock.exists() else {}
    hashes = {out["path"]: out.get("md5") for entry in stages.values() for out in entry.get("outs", [])}
    identity = {
        "stage": stage,
        "settings": [setting.model_dump(mode="json") if hasattr(setting, "model_dump") else setting for setting in settings],
        "inputs": {path.as_posix(): hashes.get(path.as_posix()) or _content(path) for path in inputs},
    }
    root = Path(os.environ.get("VIDBRIDGE_SCRATCH", ".vidbridge/scratch"))
    folder = root / stage.replace("@", "-") / digest(identity)
    code_now, code_file = _digest_files(code), folder / "code.txt"
    if code_file.exists() and code_file.read_text() != code_now and not os.environ.get("VIDBRIDGE_RESUME_ACROSS_CODE"):
        print(
            f"{stage}: the code changed since the checkpoints in {folder} were saved, so they are dropped"
            " (VIDBRIDGE_RESUME_ACROSS_CODE=1 resumes across a change of code)",
            file=sys.stderr,
        )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    code_file.write_text(code_now)
    return folder


def _content(path: Path) -> str:
    """Hash of an input that no stage in ``dvc.lock`` wrote (a verb run by hand): names, sizes and times."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    rows = [f"{p.relative_to(path.parent)} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _digest_files(paths: Sequence[Path]) -> str:
    files = sorted(f for path in paths for f in (path.rglob("*.py") if path.is_dir() else [path]))
    return hashlib.sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()


def evaluation_samples(params: Params) -> list[Sample]:
    """The samples that every policy and every baseline is scored on: at most ``samples_per_task`` of each task of the split.

    A sample's place in the draw depends on its own id only, so a new clip moves few others out.

    Raises:
        InputError: the split has no sample of any task.
    """
    split = params.evaluation.split
    tasks = samples_present()[split]
    if not tasks:
        raise InputError(
            f"evaluation.split: the {split!r} split has no sample; annotate videos with that split, or raise ingest.{split}_share"
        )
    chosen: list[Sample] = []
    for task in tasks:
        ranked = sorted(load_samples(split, [task]), key=lambda sample: digest({"seed": params.seed, "id": sample.sample_id}))
        chosen += ranked[: params.evaluation.samples_per_task]
    return chosen


def evaluation_digest(params: Params, samples: Sequence[Sample]) -> str:
    """What a score depends on apart from the policy: samples, prompts, judge, scoring, decoding. Only equal digests are compared."""
    return digest(
        {
            "samples": [sample.model_dump(mode="json") for sample in samples],
            "prompt": params.prompt.model_dump(mode="json"),
            "judge": params.judge.model_dump(mode="json"),
            "rewards": params.rewards.model_dump(mode="json"),
            "max_new_tokens": params.evaluation.max_new_tokens,
        }
    )
