"""One static page of a pipeline's results that opens offline: scores, gains, curves, replies, data,
cost, environment.

Outside DVC: it joins results (``reports``, ``scores``) with volatile facts (times, machines) from
MLflow. ``vidbridge report`` calls it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stages.domain.core.digest import digest
from stages.domain.core.prompts import render_question
from stages.domain.core.records import SPLITS, TaskName
from stages.domain.rl.rollouts import RolloutGroup
from stages.errors import InputError
from stages.lib.evaluation.held_out import evaluation_samples
from stages.lib.evaluation.results import BaselineScores, PolicyScores, SummaryMetrics
from stages.lib.rows.jsonl import read_json, read_record, read_rows
from stages.lib.rows.samples import load_samples, sheet_samples
from stages.lib.video.loader import FrameLoader
from stages.lib.video.open import frame_loader
from stages.pages.render import fill_page, in_base64, reference_text
from stages.pages.rollouts import group_views
from stages.params import Params
from stages.runtime import paths
from stages.tools.report.ablation import ablation
from stages.tools.report.cost import cost_rows, graph, request_rows, stage_names, total
from stages.tools.report.curves import of_each_task, of_gauges, of_tasks, of_training, read_curves
from stages.tools.report.environment import environment, other_parameters
from stages.tools.report.replies import replies
from stages.tools.report.scores import gain_rows, headline, sampled_rows, score_rows
from stages.tools.report.watching import of_watching
from stages.tracking.session import Session


def build(root: Path, out: Path) -> Path:
    """Write the page for the project's present results. Returns its path.

    Raises:
        InputError: the pipeline has no results yet, or one of them is damaged.
    """
    if not (root / paths.REPORTS / paths.METRICS_FILE).exists():
        raise InputError(
            f"{paths.REPORTS / paths.METRICS_FILE}", "no results yet", "run vidbridge run, then vidbridge report"
        )
    session = Session(root)
    params = session.params
    page = fill_page(
        "report.html.j2",
        styles=("palette.css", "report.css", "rollouts.css"),
        scripts=("report.js",),
        **_results(root, params),
        **_circumstances(session),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def _results(root: Path, params: Params) -> dict[str, Any]:
    """Reproducible part of the page: equal byte by byte for the same inputs."""
    rows = (*params.evaluation.of, "baselines")
    if missing := [file for row in rows if not (root / (file := paths.scores(row) / paths.SCORES_FILE)).exists()]:
        raise InputError(
            str(missing[0]), "not there, and params.yaml has it evaluated", "run vidbridge run, then vidbridge report"
        )
    tables = {
        row: read_record(root / paths.scores(row) / paths.SCORES_FILE, PolicyScores) for row in params.evaluation.of
    }
    baselines = read_record(root / paths.scores("baselines") / paths.SCORES_FILE, BaselineScores)
    tasks = list(tables[params.candidate].tasks)
    gains = read_record(root / paths.REPORTS / paths.METRICS_FILE, SummaryMetrics).gains
    grpo = read_curves(root, "grpo")
    summary = read_json(root / paths.SAMPLES / paths.SUMMARY_FILE)
    teachers = params.sft.values()
    loader = frame_loader(params)
    return {
        "recipe": params.recipe,
        "model": params.model.family
        if params.model.kind == "tiny"
        else f"{params.model.name} @ {params.model.revision}",
        "candidate": params.candidate,
        "digest": digest(params),
        "other_parameters": other_parameters(root, stage_names(params)),
        "tasks": tasks,
        "headline": headline(params, tables, baselines, gains),
        "confidence": round(100 * params.evaluation.confidence),
        "unit": params.rewards.scale == "unit",
        "careless": round(100 * max((row.careless_share for row in teachers), default=0.0)),
        "brief": round(100 * max((share for row in teachers for share in row.brief_share.values()), default=0.0)),
        "scores": score_rows(params, tables, baselines, tasks),
        "gains": gain_rows(gains, tasks),
        "ablation": ablation(root, params.recipe),
        "of_tasks": of_tasks(params, tables, grpo, tasks),
        "of_training": of_training(root),
        "watched": of_watching(root, params),
        "sampled": sampled_rows(params, tables, tasks),
        "of_each_task": of_each_task(grpo),
        "gauges": of_gauges(params, grpo),
        "said": replies(root, params, evaluation_samples(params), loader),
        "filters": _filters(root, params),
        "rollouts": _rollouts(root, params, loader),
        "splits": SPLITS,
        "clips": read_json(root / paths.CLIPS / paths.SUMMARY_FILE),
        "made": summary,
        "data_samples": sum(sum(of_split.values()) for of_split in summary["samples"].values()),
        "sheets": [
            {"task": task, "png": in_base64(sheet.read_bytes()), "texts": _texts(params, task)}
            for task in params.synthesize.tasks.named
            if (sheet := root / paths.SAMPLES / paths.SHEETS / f"{task}.png").exists()
        ],
    }


def _circumstances(session: Session) -> dict[str, Any]:
    """Volatile part of the page, from MLflow and this machine."""
    # MLflow takes a second to import, and a page that cannot be built should fail before.
    from stages.tracking.runs.history import latest_runs

    root, params = session.root, session.params
    latest = latest_runs(session.client, root)
    runs = {name: latest[name] for name in stage_names(params) if name in latest}
    return {
        "graph": graph(root, params, runs),
        "costs": cost_rows(params, runs),
        "total": total(params, runs),
        "asked": request_rows(params, runs),
        "environment": environment(root, params, runs, datetime.now(UTC)),
    }


def _texts(params: Params, task: TaskName) -> list[dict[str, str]]:
    """Content of a contact sheet as text: it can be read aloud, searched, and rendered in any
    script that the reader's machine has."""
    return [
        {
            "id": sample.sample_id,
            "question": render_question(sample.question, sample.options, params.prompt),
            "reference": reference_text(sample),
        }
        for sample in sheet_samples(params, task)
    ]


def _filters(root: Path, params: Params) -> list[dict[str, Any]]:
    """A table of counts and a histogram for each difficulty row that has run; a row that has not is
    omitted."""
    tables = []
    for name, row in params.difficulty.items():
        folder = root / paths.difficulty(name)
        if (folder / paths.HISTOGRAM_FILE).exists():
            png = in_base64((folder / paths.HISTOGRAM_FILE).read_bytes())
            tables.append(
                {"name": name, "row": row, "tasks": read_json(folder / paths.SUMMARY_FILE)["tasks"], "png": png}
            )
    return tables


def _rollouts(root: Path, params: Params, loader: FrameLoader) -> list[dict[str, Any]]:
    """Last recorded rollouts of each GRPO row before its last checkpoint; a row without a model
    folder is omitted.

    Raises:
        InputError: one of their samples no longer exists.
    """
    rows = []
    for name, row in params.grpo.items():
        file = paths.model(name) / paths.ROLLOUTS_FILE
        groups = read_rows(root / file, RolloutGroup) if (root / file).exists() else []
        if not groups:
            continue
        samples = {sample.sample_id: sample for sample in load_samples("train", row.trained_tasks, Path(row.samples))}
        if gone := [group.sample_id for group in groups if group.sample_id not in samples]:
            raise InputError(
                str(file),
                f"sample {gone[0]!r} is no longer in {row.samples}",
                "run vidbridge run, then vidbridge report",
            )
        last = [group for group in groups if group.step == groups[-1].step]
        frames = (loader.load(samples[group.sample_id]) for group in last)
        rows.append({"name": name, "step": last[0].step, "groups": group_views(last, frames)})
    return rows
