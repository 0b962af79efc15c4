"""A version as a folder of its own: for the hub, for vLLM, or for any machine that knows neither this project nor its servers."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from stages.domain.prompts import render_prompt
from stages.inputs import InputError
from stages.pages import fill
from stages.tracking.content import parse_source
from stages.tracking.explain import Explanation, explain
from stages.tracking.gate import load_checkpoint
from stages.tracking.servable import Usage, additions, usage_of_version
from stages.tracking.versions import Version

CARD_FILE = "README.md"
#: Without these a folder is no model that others can load.
NEEDED = ("config.json", "generation_config.json", "preprocessor_config.json|processor_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Published:
    """What was written: which version, where, and how large it is."""

    version: Version
    folder: Path
    size_bytes: int


def publish(root: Path, which: str, out: Path) -> Published:
    """Write the version with that number or alias into ``out``: weights, processor, chat template, generation settings, a model
    card, and what ``mlflow models serve`` needs. Nothing in it points back here, and its weights are no link to the cache.

    Raises:
        InputError: ``out`` holds something already, or the version lacks a file without which others cannot load it.
        TrackingError: no such version, neither cache nor remote has its files, or it does not say how it is asked.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"folder: {str(out)!r} holds something already; name a new or an empty folder")
    explanation = explain(root, which)
    version = explanation.version
    usage = usage_of_version(version)
    source = load_checkpoint(root, version.number)
    for names in NEEDED:
        if not any((source / name).is_file() for name in names.split("|")):
            raise InputError(
                f"version {version.number}: has no {names.replace('|', ' or ')}, so nothing could load it; train its row again"
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".part-") as part:
        whole = Path(part) / "whole"
        # Copied, not linked: whoever edits the folder must not edit the cache.
        shutil.copytree(source, whole, copy_function=shutil.copyfile)
        for name, text in additions(usage, parse_source(version.source).oid[:32], version.created_ms).items():
            (whole / name).write_bytes(text)
        (whole / CARD_FILE).write_text(card(explanation, usage), encoding="utf-8")
        whole.replace(out)
    return Published(version, out, sum(path.stat().st_size for path in out.rglob("*") if path.is_file()))


def card(explanation: Explanation, usage: Usage) -> str:
    """The model card, as the hub reads it."""
    version = explanation.version
    return fill(
        "model_card.md.j2",
        trim_blocks=True,
        version=version,
        usage=usage,
        commit=explanation.commit or explanation.git_commit,
        ancestors=[ancestor.stage for ancestor in explanation.ancestors],
        data=explanation.data,
        scores=explanation.scores,
        baselines=version.baselines if explanation.scores else None,
        # As Python writes it, for the example.
        prompt=repr(render_prompt("What happens first?", usage.default_task, usage.prompt)),
    )
