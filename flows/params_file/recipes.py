"""Recipes: complete ``params.yaml`` files under ``infra/recipes``. Using one copies it over; git
shows the difference.

Any recipe can be tried in minutes (``--smoke``): the same rows, tasks, losses and rewards, a few
steps each, on the generated corpus and the tiny model of the recipe ``smoke``. Every path is then
walked for real before it is paid for.
"""

from __future__ import annotations

import difflib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from flows.errors import UsageError
from flows.params_file.settings import with_settings
from flows.processes.environment import RECIPES, recipe_files
from stages.errors import VidbridgeError
from stages.params import ExcludedVideo, Params, load_params, parse_params
from stages.runtime import paths
from stages.runtime.bounded_yaml import YamlError, parse_yaml, read_text, read_yaml
from stages.tools.dataset.excluded import with_excluded

#: Recipe whose parameters are used outside a project.
DEFAULT = "vidbridge-r1"


@dataclass(frozen=True)
class Recipe:
    name: str
    path: Path
    #: The comment that opens the file, without its marks.
    about: str
    #: True if ``params.yaml`` is this recipe, byte for byte.
    in_use: bool


def recipes(root: Path | None) -> tuple[Recipe, ...]:
    """Every recipe by name: the project's own, and those that come with this code."""
    current = (
        (root / paths.PARAMS_FILE).read_bytes() if root is not None and (root / paths.PARAMS_FILE).is_file() else b""
    )
    found = recipe_files(root).values()
    removed = _removed(root)

    def in_use(path: Path) -> bool:
        text = path.read_bytes()
        # Both begin with the comment that says what the recipe is: another one need not be read
        # whole.
        if not removed or text.partition(b"\n")[0] != current.partition(b"\n")[0]:
            return text == current
        try:
            return with_removed_videos(read_text(path), removed, path.name).encode() == current
        except VidbridgeError:  # damaged, so not what is in use
            return False

    return tuple(Recipe(path.stem, path, _about(path), in_use(path)) for path in found)


def _removed(root: Path | None) -> tuple[ExcludedVideo, ...]:
    """Videos that the present ``params.yaml`` leaves out on request; none if it cannot be read."""
    if root is None:
        return ()
    try:
        table = read_yaml(root / paths.PARAMS_FILE)
        return tuple(ExcludedVideo.model_validate(row) for row in table["ingest"]["exclude"])
    except (OSError, YamlError, KeyError, TypeError, ValidationError):
        return ()


def with_removed_videos(text: str, removed: Sequence[ExcludedVideo], name: str) -> str:
    """Text of a recipe that also leaves out the videos removed on request: a request outlives a
    change of recipe.
    """
    if not removed:
        return text
    own = parse_params(parse_yaml(text, name), name).ingest.exclude
    return with_excluded(text, list(dict.fromkeys([*own, *removed])), name)


#: Tables that recipe ``smoke`` replaces in another one, and keys of its rows: data, model, sizes
#: and lengths.
_SMOKE_TABLES = ("corpus", "ingest", "prompt", "gate")
_SMOKE_ROW = (
    "steps",
    "samples_per_step",
    "samples_per_device",
    "prompts_per_step",
    "completions_per_device",
    "rollouts",
    "learning_rate",
    "warmup_steps",
    "save_steps",
    "adam_beta2",
    "precision",
    "gradient_checkpointing",
    "max_completion_tokens",
)
#: Settings of rows that sort samples by difficulty. A policy of a few steps earns almost nothing,
#: so no sample varies: none is dropped for that.
_SMOKE_DIFFICULTY = {"rollouts": 2, "batch_size": 16, "max_samples_per_task": 8, "min_spread": 0.0}
_FAMILIES = {"Qwen3-VL": "qwen3_vl", "Qwen2.5-VL": "qwen2_5_vl", "Qwen2-VL": "qwen2_vl"}


def smoke_version(root: Path | None, name: str) -> str:
    """Text of a recipe on the tiny model and the generated corpus, a few steps a row, as YAML.

    Raises:
        UsageError: no such recipe.
        ParamsError: the recipe breaks a rule.
    """
    chosen, small = recipe(root, name), recipe(root, "smoke")
    load_params(chosen.path)
    table, smoke = (read_yaml(one.path) for one in (chosen, small))
    model, chosen_evaluation = table["model"], table["evaluation"]
    family = next((f for mark, f in _FAMILIES.items() if mark in model.get("name", "")), model.get("family"))
    tasks = smoke["synthesize"]["tasks"]
    table |= {key: smoke[key] for key in _SMOKE_TABLES}
    table |= {
        "recipe": f"{name}-smoke",
        "synthesize": smoke["synthesize"]
        | {"tasks": {task: tasks.get(task, own) for task, own in table["synthesize"]["tasks"].items()}},
        "model": smoke["model"] | {"family": family},
        "judge": smoke["judge"],
        "held_out_judge": smoke["held_out_judge"],
        "evaluation": smoke["evaluation"] | {key: table["evaluation"][key] for key in ("of", "split")},
    }
    # So small a model thinks in a few words.
    table["rewards"]["min_thinking_words"] = smoke["rewards"]["min_thinking_words"]
    table["gate"] = table["gate"] | {"registered_model": f"{name}-smoke"}
    for kind in ("sft", "grpo"):
        sizes = next(iter(smoke[kind].values()))
        for row in table[kind].values():
            row.update({key: sizes[key] for key in _SMOKE_ROW if key in row})
    tokens = next(iter(smoke["grpo"].values()))["max_completion_tokens"]
    changed = _changes(table["ablation"])
    for changes in changed:
        for key in (*_SMOKE_ROW, "watch"):
            changes.pop(key, None)
    for row in (*table["sft"].values(), *table["grpo"].values()):
        if row["watch"]:
            row["watch"] |= {"every": row["save_steps"], "samples_per_task": 4, "max_new_tokens": tokens}
            row["watch"] |= {key: table[key] for key in ("judge", "rewards") if key in row["watch"]}
            if row["watch"]["sampled"]:
                row["watch"]["sampled"] |= {"replies": 2}
    if (sampled := chosen_evaluation["sampled"]) is not None:
        table["evaluation"] |= {"sampled": sampled | {"replies": 2}}
    for row in (*table["grpo"].values(), *changed):
        if row.get("length"):  # a length that so few tokens can have, and need not have
            row["length"] |= {"min_words": 2, "max_words": tokens // 2}
        if row.get("overlong"):
            row["overlong"]["margin_tokens"] = tokens // 2
    for row in table["difficulty"].values():
        row.update(_SMOKE_DIFFICULTY, max_completion_tokens=tokens)
    about = f"# The recipe `{name}` in small: its rows, tasks, losses and rewards, a few steps each, on the tiny model."
    return about + "\n" + yaml.safe_dump(table, sort_keys=False, allow_unicode=True, width=140)


def _changes(grid: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Changes that the variants of a grid make to a recipe's rows."""
    return [] if grid is None else [grid["shared"], *(variant["changes"] for variant in grid["variants"].values())]


def _about(path: Path) -> str:
    try:
        text = read_text(path)
    except YamlError as error:
        return f"cannot be used: {error}"
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    return " ".join(lines)


def recipe(root: Path | None, name: str) -> Recipe:
    """Look a recipe up by its name.

    Raises:
        UsageError: there is no such recipe.
    """
    every = recipes(root)
    for one in every:
        if one.name == name:
            return one
    names = ", ".join(one.name for one in every)
    raise UsageError("recipe", f"{name!r} does not exist", f"choose one of {names}")


def params_or_default(root: Path | None) -> Params:
    """Parameters of ``params.yaml``; outside a project those of :func:`default_params`.

    Raises:
        ParamsError: the file is missing or breaks a rule.
    """
    return default_params() if root is None else load_params(root / paths.PARAMS_FILE)


def default_params() -> Params:
    """Parameters of the recipe :data:`DEFAULT`, whose ingest and judge suit videos of people."""
    return load_params(recipe(None, DEFAULT).path)


def difference(root: Path, name: str) -> str:
    """Unified diff of what `use` would change in ``params.yaml``; empty if nothing."""
    new = recipe(root, name).path
    old = read_text(root / paths.PARAMS_FILE) if (root / paths.PARAMS_FILE).is_file() else ""
    lines = difflib.unified_diff(
        old.splitlines(keepends=True),
        read_text(new).splitlines(keepends=True),
        paths.PARAMS_FILE,
        str(RECIPES / new.name),
    )
    return "".join(lines)


def use(root: Path, name: str, force: bool = False, *, smoke: bool = False) -> Params:
    """Copy a recipe, or its small version, over ``params.yaml`` and return its parameters. A recipe
    that does not load is never copied.

    Videos that were removed on request stay removed.

    Raises:
        UsageError: no such recipe, or ``params.yaml`` holds edits that neither a commit nor a
            recipe keeps, and ``force`` is not set.
        ParamsError: the recipe breaks a rule.
        FlowError: a run holds the project; its parameters would change under it.
    """
    from flows.processes.locks import only_run

    with only_run(root):
        return _use(root, name, force, smoke)


def _use(root: Path, name: str, force: bool, smoke: bool) -> Params:
    chosen = recipe(root, name)
    text = smoke_version(root, name) if smoke else read_text(chosen.path)
    params = parse_params(parse_yaml(text, name), f"{name} --smoke") if smoke else load_params(chosen.path)
    if not force:
        _refuse_edits(root, f", or overwrite them: vidbridge recipe use {name} --force")
    if removed := _removed(root):
        text = with_removed_videos(text, removed, name)
        params = parse_params(parse_yaml(text, name), name)
    _write(root, text)
    return params


def _refuse_edits(root: Path, otherwise: str = "") -> None:
    if _holds_edits(root):
        raise UsageError(
            paths.PARAMS_FILE,
            "has edits that no commit and no recipe keeps",
            f"commit them, or save them as a recipe (cp {paths.PARAMS_FILE} {RECIPES}/NAME.yaml){otherwise}",
        )


def _write(root: Path, text: str) -> None:
    partial = root / (paths.PARAMS_FILE + paths.UNFINISHED)
    partial.write_text(text, encoding="utf-8")
    partial.replace(root / paths.PARAMS_FILE)


def change(root: Path, name: str | None, settings: Sequence[str]) -> str:
    """Write single values into ``params.yaml``, over the recipe ``name`` if one is set; returns the
    unified diff.

    Comments and all other values stay as they are. A value that breaks a rule is not written.

    Raises:
        UsageError: no such recipe or value, or ``params.yaml`` holds edits that neither a commit
            nor a recipe keeps.
        ParamsError: what came of it breaks a rule.
        FlowError: a run holds the project.
    """
    from flows.processes.locks import only_run

    with only_run(root):
        old = read_text(root / paths.PARAMS_FILE)
        text = old if name is None else with_removed_videos(read_text(recipe(root, name).path), _removed(root), name)
        text = with_settings(text, settings)
        parse_params(parse_yaml(text, paths.PARAMS_FILE), paths.PARAMS_FILE)
        if text != old:
            _refuse_edits(root)
            _write(root, text)
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), text.splitlines(keepends=True), paths.PARAMS_FILE, f"{paths.PARAMS_FILE} now"
    )
    return "".join(lines)


def _holds_edits(root: Path) -> bool:
    path = root / paths.PARAMS_FILE
    if not path.is_file() or any(one.in_use for one in recipes(root)):
        return False
    try:
        table = read_yaml(path)
    except YamlError:  # damaged, so nothing but a person's own state
        table = None
    name = str(table.get("recipe", "")) if isinstance(table, dict) else ""
    made_from = name.removesuffix("-smoke")
    if (
        name != made_from
        and any(one.name == made_from for one in recipes(root))
        and read_text(path) == with_removed_videos(smoke_version(root, made_from), _removed(root), name)
    ):
        return False
    committed = subprocess.run(
        ["git", "-C", str(root), "show", f"HEAD:./{paths.PARAMS_FILE}"], capture_output=True, check=False
    )
    return committed.returncode != 0 or committed.stdout != path.read_bytes()
