"""One static page of what a pipeline made, that opens offline: scores, gains, curves, replies, data.

Outside DVC: it joins results (``reports``, ``scores``) with volatile things (times) from MLflow. ``vidbridge report`` calls it.
"""

from __future__ import annotations

import csv
import io
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages import layout
from stages.domain.prompts import render_question
from stages.domain.records import Score
from stages.domain.rollouts import RolloutGroup
from stages.held_out import evaluation_samples
from stages.inputs import InputError, frame_loader, load_samples
from stages.pages import fill, film_strip, in_base64
from stages.params import Params, digest, load_params
from stages.rollout_pages import group_views
from stages.rows import read_json, read_rows
from stages.video.edits import FrameLoader

#: Held-out samples of each task that the page shows.
EXAMPLES_PER_TASK = 2
_PACKAGES = ("torch", "transformers", "trl", "deepspeed", "prefect", "dvc", "mlflow", "decord", "ffmpeg-python", "numpy")


def build(root: Path, out: Path) -> Path:
    """Write the page for the project's present results and return its path.

    Raises:
        InputError: the pipeline has no results yet.
    """
    if not (root / layout.REPORTS / "metrics.json").exists():
        raise InputError(f"{layout.REPORTS / 'metrics.json'}: no results yet; run vidbridge run, then vidbridge report")
    params = load_params(root / "params.yaml")
    page = fill("report.html.j2", **_content(root, params))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def _content(root: Path, params: Params) -> dict[str, Any]:
    tables = {row: read_json(root / layout.scores(row) / "scores.json") for row in (*params.evaluation.of, "baselines")}
    candidate = tables[params.candidate]
    tasks = list(candidate["tasks"])
    metrics = read_json(root / layout.REPORTS / "metrics.json")
    teachers = params.sft.values()
    loader = frame_loader(params)
    return {
        "recipe": params.recipe,
        "model": params.model.family if params.model.kind == "tiny" else f"{params.model.name} @ {params.model.revision}",
        "candidate": params.candidate,
        "digest": digest(params),
        "tasks": tasks,
        "split": candidate["split"],
        "samples": candidate["samples"],
        "confidence": round(100 * params.evaluation.confidence),
        "careless": round(100 * max((row.careless_share for row in teachers), default=0.0)),
        "brief": round(100 * max((share for row in teachers for share in row.brief_share.values()), default=0.0)),
        "scores": [*_trivial_rows(tables["baselines"], tasks), *_policy_rows(params, tables, tasks)],
        "gains": _gain_rows(metrics["gains"], tasks),
        "figures": _figures(root),
        "filters": _filters(root, params),
        "rollouts": _rollouts(root, params, loader),
        "examples": _examples(root, params, loader),
        "steps": _steps(root, params),
        "data": _data(root),
        "sheets": [
            {"task": path.stem, "png": in_base64(path.read_bytes())}
            for path in sorted((root / layout.SAMPLES / "sheets").glob("*.png"))
        ],
        "versions": " · ".join(f"{name} {version(name)}" for name in _PACKAGES),
    }


def _trivial_rows(baselines: dict[str, Any], tasks: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "kind": "trivial",
            "name": name,
            "cells": [baselines["tasks"][task][name] for task in tasks],
            "mean": baselines[name]["mean"],
            "format": "–",
            "blank": "–",
        }
        for name in ("random", "constant")
    ]


def _policy_rows(params: Params, tables: dict[str, Any], tasks: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "kind": "candidate" if row == params.candidate else "policy",
            "name": row,
            "cells": [tables[row]["tasks"][task] for task in tasks],
            "mean": tables[row]["mean"],
            "format": f"{tables[row]['format']:.3f}",
            "blank": f"{tables[row]['blank_mean']:.3f}",
        }
        for row in params.evaluation.of
    ]


def _gain_rows(gains: dict[str, Any], tasks: list[str]) -> list[dict[str, Any]]:
    def cell(interval: dict[str, float]) -> dict[str, Any]:
        kind = "good" if interval["low"] > 0 else "bad" if interval["high"] < 0 else ""
        return {"kind": kind, **{key: interval[key] for key in ("mean", "low", "high")}}

    return [{"name": name, "cells": [cell(gain)] + [cell(gain["tasks"][t]) for t in tasks]} for name, gain in gains.items()]


def _figures(root: Path) -> list[dict[str, str]]:
    """One figure a kind of training: a line a row of the table, over that row's own steps."""
    from matplotlib.figure import Figure

    wanted = {
        "sft": [("loss", "loss")],
        "grpo": [("reward", "reward"), ("entropy", "entropy"), ("completions/mean_length", "tokens a reply")],
    }
    figures = []
    for kind, series in wanted.items():
        path = root / layout.REPORTS / "plots" / f"{kind}.csv"
        with path.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        shown = [(key, label) for key, label in series if rows and key in rows[0]]
        if not shown:
            continue
        figure = Figure(figsize=(4.2 * len(shown) + 0.6, 3.0), dpi=110, layout="constrained")
        for axis, (key, label) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            for name in dict.fromkeys(row["row"] for row in rows):
                points = [(int(r["step"]), float(r[key])) for r in rows if r["row"] == name and r[key]]
                if points:
                    axis.plot(*zip(*points, strict=True), label=name, linewidth=1.6)
            axis.set(title=f"{kind}: {label}", xlabel="step")
            axis.grid(alpha=0.25)
            axis.legend(frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        figures.append({"title": f"{kind} curves", "png": in_base64(buffer.getvalue())})
    return figures


def _filters(root: Path, params: Params) -> list[dict[str, Any]]:
    """A table of counts and a histogram for each difficulty row that has run; one that was never reached shows nothing."""
    shown = []
    for name, row in params.difficulty.items():
        folder = root / layout.difficulty(name)
        if (folder / layout.HISTOGRAM_FILE).exists():
            png = in_base64((folder / layout.HISTOGRAM_FILE).read_bytes())
            shown.append({"name": name, "row": row, "tasks": read_json(folder / layout.SUMMARY_FILE)["tasks"], "png": png})
    return shown


def _rollouts(root: Path, params: Params, loader: FrameLoader) -> list[dict[str, Any]]:
    """What each GRPO row learned from before its last checkpoint; a row whose model folder is not here shows nothing.

    Raises:
        InputError: a sample of theirs is gone.
    """
    shown = []
    for name, row in params.grpo.items():
        file = layout.model(name) / layout.ROLLOUTS_FILE
        groups = read_rows(root / file, RolloutGroup) if (root / file).exists() else []
        if not groups:
            continue
        samples = {sample.sample_id: sample for sample in load_samples("train", row.trained_tasks, Path(row.samples))}
        if gone := [group.sample_id for group in groups if group.sample_id not in samples]:
            raise InputError(f"{file}: sample {gone[0]!r} is no longer in {row.samples}; run vidbridge run, then vidbridge report")
        last = [group for group in groups if group.step == groups[-1].step]
        frames = (loader.load(samples[group.sample_id]) for group in last)
        shown.append({"name": name, "step": last[0].step, "groups": group_views(last, frames)})
    return shown


def _examples(root: Path, params: Params, loader: FrameLoader) -> list[dict[str, Any]]:
    samples = evaluation_samples(params)
    policies = [row for row in (*params.sft, params.candidate) if row in params.evaluation.of]
    said = {
        row: {s.sample_id: s for s in read_rows(root / layout.scores(row) / "predictions.jsonl", Score)}
        for row in dict.fromkeys(policies)
    }
    shown: list[dict[str, Any]] = []
    for task in dict.fromkeys(sample.task for sample in samples):
        for sample in [s for s in samples if s.task == task][:EXAMPLES_PER_TASK]:
            replies = [(row, scores[sample.sample_id]) for row, scores in said.items() if sample.sample_id in scores]
            shown.append(
                {
                    "task": task,
                    "question": render_question(sample.question, sample.options, params.prompt),
                    "reference": sample.reference,
                    "strip": film_strip(loader.load(sample).pixels),
                    "replies": [
                        {"row": row, "value": "not judged" if s.value is None else f"{s.value:.2f}", "text": s.reply}
                        for row, s in replies
                    ],
                }
            )
    return shown


def _steps(root: Path, params: Params) -> list[dict[str, str]]:
    from stages.tracking.history import latest_costs

    names = ["corpus", "ingest", "synthesize", "base", *(f"sft@{n}" for n in params.sft)]
    names += [f"{stage}@{n}" for n in params.grpo for stage in ("difficulty", "grpo") if stage == "grpo" or n in params.difficulty]
    names += ["baselines", *(f"evaluate@{n}" for n in params.evaluation.of), "summary"]
    costs = latest_costs(root)
    return [
        {"name": n, "detail": f"{costs[n].wall_s:.0f} s, {costs[n].peak_gb:.1f} GB" if n in costs else "no run recorded"}
        for n in names
    ]


def _data(root: Path) -> dict[str, Any]:
    made = read_json(root / layout.SAMPLES / layout.SUMMARY_FILE)
    clips = read_json(root / layout.CLIPS / layout.SUMMARY_FILE)
    total = sum(sum(tasks.values()) for tasks in made["samples"].values())
    reasons = {**clips["rejected"], **made["rejects"]}
    return {
        "clips": clips["accepted"],
        "rejected": sum(clips["rejected"].values()),
        "samples": f"{total:,}",
        "reasons": sorted(reasons.items()),
    }
