"""Score one policy on held-out samples, and again on a black video: what it says without looking.

Run as ``python -m stages evaluate ROW`` (a row of ``evaluation.of``); writes ``scores/ROW``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from stages import layout
from stages.domain.frames import Frames
from stages.domain.metrics import mean_over_tasks, task_results
from stages.domain.prompts import sample_prompt
from stages.domain.records import Sample, Score
from stages.domain.scoring import score_reply
from stages.entry import one_row
from stages.held_out import evaluation_digest, evaluation_samples
from stages.inputs import frame_loader
from stages.judging.choose import judge_of
from stages.learning.factory import device, load_model, use_threads
from stages.learning.generate import generate
from stages.params import Params, load_params
from stages.rows import write_json, write_rows
from stages.tracking.runs import stage_run


def main(*arguments: str) -> int:
    params = load_params()
    row = one_row("evaluate", list(arguments), list(params.evaluation.of))
    with stage_run(f"evaluate@{row}", params) as run:
        samples = evaluation_samples(params)
        loader = frame_loader(params)
        use_threads()
        model, processor = load_model(layout.final_model(row), params.model.precision)
        model.to(device())  # type: ignore[arg-type]

        def scored(name: str, see: Callable[[Frames], Frames]) -> list[Score]:
            # Functions, not frames: only one batch of them is then in memory.
            items = [(sample_prompt(sample, params.prompt), partial(lambda s: see(loader.load(s)), sample)) for sample in samples]
            with tqdm(total=len(items), desc=name, unit="reply", mininterval=1) as bar:
                replies = generate(
                    model,
                    processor,
                    items,
                    max_new_tokens=params.evaluation.max_new_tokens,
                    temperature=None,
                    batch_size=params.evaluation.batch_size,
                    progress=bar.update,  # type: ignore[arg-type]
                )
            rules, referee = params.rewards, judge_of(params.judge)
            return [score_reply(sample, reply, referee, rules) for sample, reply in zip(samples, replies, strict=True)]

        video = scored(row, lambda frames: frames)
        blank = scored(f"{row} (blank video)", lambda frames: replace(frames, pixels=np.zeros_like(frames.pixels)))
        table = result_table(params, row, samples, video, blank)
        write_rows(layout.scores(row) / "predictions.jsonl", video)
        write_rows(layout.scores(row) / "predictions_blank.jsonl", blank)
        write_json(layout.scores(row) / "scores.json", table)
        history = layout.model(row) / layout.HISTORY_FILE
        if history.exists():  # beside the scores, so that the summary depends on the rows that live and not on all of models/
            shutil.copyfile(history, layout.scores(row) / layout.HISTORY_FILE)
        run.summary({"mean": table["mean"], "format": table["format"], "frames_served_by_decord": loader.stats.decord})
        run.summary({f"{task}/mean": result["mean"] for task, result in table["tasks"].items()})
        print(f"evaluate@{row}: mean {table['mean']:.3f} over {len(table['tasks'])} tasks, format {table['format']:.3f}")
    return 0


def result_table(
    params: Params, row: str, samples: Sequence[Sample], video: Sequence[Score], blank: Sequence[Score]
) -> dict[str, Any]:
    """``scores.json``: per task the mean with its interval, format share, and the mean on a blank video."""
    clips = {sample.sample_id: sample.clip_id for sample in samples}
    draws, confidence = params.evaluation.bootstrap_draws, params.evaluation.confidence
    results = task_results(video, clips, draws, confidence, params.seed)
    without_video = task_results(blank, clips, draws, confidence, params.seed)
    return {
        "schema_version": 1,
        "row": row,
        "digest": evaluation_digest(params, samples),
        "split": params.evaluation.split,
        "samples": len(samples),
        "mean": mean_over_tasks(results),
        "blank_mean": mean_over_tasks(without_video),
        "format": sum(score.format_ok for score in video) / len(video),
        "tasks": {
            task: {**result.model_dump(), "blank": without_video[task].mean, "blank_high": without_video[task].high}
            for task, result in results.items()
        },
    }
