"""One static page of what a pipeline made, that opens offline: scores, gains, curves, replies, data.

Outside DVC: it joins results (``reports``, ``scores``) with volatile things (times) from MLflow. ``vidbridge report`` calls it.
"""

from __future__ import annotations

import csv
import io
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from stages import layout
from stages.domain.prompts import render_question
from stages.domain.records import Score
from stages.held_out import evaluation_samples
from stages.inputs import InputError, frame_loader
from stages.pages import fill, in_base64
from stages.params import Params, digest, load_params
from stages.rows import read_json, read_rows

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
        "examples": _examples(root, params),
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


def _examples(root: Path, params: Params) -> list[dict[str, Any]]:
    samples = evaluation_samples(params)
    policies = [row for row in (*params.sft, params.candidate) if row in params.evaluation.of]
    said = {
        row: {s.sample_id: s for s in read_rows(root / layout.scores(row) / "predictions.jsonl", Score)}
        for row in dict.fromkeys(policies)
    }
    loader = frame_loader(params)
    shown: list[dict[str, Any]] = []
    for task in dict.fromkeys(sample.task for sample in samples):
        for sample in [s for s in samples if s.task == task][:EXAMPLES_PER_TASK]:
            replies = [(row, scores[sample.sample_id]) for row, scores in said.items() if sample.sample_id in scores]
            shown.append(
                {
                    "task": task,
                    "question": render_question(sample.question, sample.options, params.prompt),
                    "reference": sample.reference,
                    "strip": _strip(loader.load(sample).pixels),
                    "replies": [
                        {"row": row, "value": "not judged" if s.value is None else f"{s.value:.2f}", "text": s.reply}
                        for row, s in replies
                    ],
                }
            )
    return shown


def _strip(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    """The frames side by side, at most 120 pixels high, as a PNG in base64."""
    from PIL import Image

    gap = max(1, pixels.shape[2] // 24)
    framed = np.pad(pixels, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)  # a white gap between frames
    image = Image.fromarray(np.concatenate(list(framed), axis=1)[:, :-gap])
    if image.height > 120:
        image = image.resize((image.width * 120 // image.height, 120), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return in_base64(buffer.getvalue())


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
