"""Make the samples of every task from the clips: edit decision lists, questions, references, and a contact sheet a task.

Run as ``python -m stages synthesize``; writes ``data/samples``.
"""

from __future__ import annotations

import sys
from collections import Counter

from tqdm import tqdm

from stages import layout
from stages.domain.records import SPLITS, Reject, Sample, TaskName
from stages.domain.synthesis import synthesise
from stages.domain.tasks.dark_event_infer import dark_frames
from stages.inputs import frame_loader, load_clips
from stages.params import Params, load_params
from stages.rows import write_json, write_rows
from stages.tracking.runs import stage_run
from stages.video.sheets import sample_sheet


def main() -> int:
    params = load_params()
    with stage_run("synthesize", params) as run:
        samples, rejects = _make(params)
        for split in SPLITS:
            for task in params.synthesize.tasks.named:
                write_rows(layout.SAMPLES / split / f"{task}.jsonl", samples[task, split])
        write_rows(layout.SAMPLES / "rejects.jsonl", rejects)
        counts = {split: {task: len(samples[task, split]) for task in params.synthesize.tasks.named} for split in SPLITS}
        reasons = dict(sorted(Counter(reject.reason for reject in rejects).items()))
        write_json(layout.SAMPLES / layout.SUMMARY_FILE, {"samples": counts, "rejects": reasons})

        loader = frame_loader(params)
        for task in params.synthesize.tasks.named:
            shown = next((samples[task, split] for split in SPLITS if samples[task, split]), [])
            if shown:
                sheet = layout.SAMPLES / "sheets" / f"{task}.png"
                sample_sheet(task, shown[: params.synthesize.contact_sheet_samples], loader, sheet)

        total = sum(sum(tasks.values()) for tasks in counts.values())
        run.summary({"samples": total, "rejects": len(rejects), "frames_served_by_decord": loader.stats.decord})
        aside = "".join(f", {count} set aside: {reason}" for reason, count in reasons.items())
        print(
            f"synthesize: {total:,} samples of {len(params.synthesize.tasks.named)} tasks{aside}; sheets in {layout.SAMPLES / 'sheets'}"
        )
    if not total:
        print(f"error: synthesize: no clip gave a sample; {layout.SAMPLES / 'rejects.jsonl'} says why for each", file=sys.stderr)
        return 1
    return 0


def _make(params: Params) -> tuple[dict[tuple[TaskName, str], list[Sample]], list[Reject]]:
    clips = list(load_clips().values())
    named = params.synthesize.tasks.named
    samples: dict[tuple[TaskName, str], list[Sample]] = {(task, split): [] for task in named for split in SPLITS}
    rejects: list[Reject] = []
    for task in named:
        rows = synthesise(clips, task, params.synthesize.tasks, params.synthesize.sampled_frames, params.seed)
        for clip, made, refused in tqdm(rows, desc=task, total=len(clips), unit="clip", mininterval=1):
            samples[task, clip.split] += made
            rejects += refused
    unmasked = [sample.sample_id for sample in samples.get(("dark_event_infer", "train"), []) if not dark_frames(sample)]
    if unmasked:
        raise AssertionError(f"{unmasked[0]}: made although no sampled frame is dark")
    return samples, rejects
