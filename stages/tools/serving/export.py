"""Export a version as a self-contained folder: for the hub, for vLLM, or for machines without this
project and its servers."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.domain.core.prompts import render_prompt
from stages.domain.core.timeline import counts, in_words
from stages.errors import InputError
from stages.lib.models.harmless import fault_of_files
from stages.pages.render import fill
from stages.runtime.paths import AFTER_LAST, POSITIONS
from stages.tools.serving import vllm_serve
from stages.tracking.lineage.placing import put_bytes
from stages.tracking.registry.explain import Explanation, explain
from stages.tracking.registry.servable import Usage, load_servable, usage_of_version
from stages.tracking.registry.versions import Version
from stages.tracking.session import Session

CARD_FILE = "README.md"
#: Required files; without them other programs cannot load the model.
NEEDED = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json|processor_config.json",
    "tokenizer_config.json",
)

#: Rule for the position of the text behind a video with which weights were trained, by their
#: configuration.
_POSITIONS = {AFTER_LAST: "one after the video's last position on any axis, time included (transformers <= 5.2, vLLM)"}
_UNKNOWN_POSITIONS = (
    "not stated: trained by an older version, with the rule of transformers >= 5.3, which vLLM does not follow"
)
_GRID_A_FRAME = "a grid a frame, where all versions of transformers and vLLM agree"


@dataclass(frozen=True)
class ExportedVersion:
    """The exported version, its folder and its size. ``vllm``: the command that serves it."""

    version: Version
    folder: Path
    size_bytes: int
    vllm: str


def export_version(session: Session, which: str, out: Path) -> ExportedVersion:
    """Write the version with that number or alias into ``out``: weights, processor, chat template,
    generation settings, a model card, and the files that ``mlflow models serve`` needs.

    The folder does not refer to this project, and its weights are not links to the cache.

    Raises:
        InputError: ``out`` is not empty, or the version lacks a file without which others cannot
            load it, or could be loaded only by running code of its own.
        TrackingError: no such version, neither cache nor remote has its files, or it has no
            settings for requests.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError("folder", f"{str(out)!r} holds something already", "name a new or an empty folder")
    explanation = explain(session, which)
    version = explanation.version
    usage = usage_of_version(version)
    source = load_servable(session.root, version)
    for names in NEEDED:
        if not any((source / name).is_file() for name in names.split("|")):
            raise InputError(
                f"version {version.number}",
                f"has no {names.replace('|', ' or ')}, so nothing could load it",
                "train its row again",
            )
    if fault := fault_of_files(source):
        raise InputError(f"version {version.number}", *fault)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".part-") as part:
        whole = Path(part) / "whole"
        # Copied, not linked: edits of the folder must not reach the cache.
        shutil.copytree(source, whole, copy_function=shutil.copyfile)
        config = json.loads((whole / "config.json").read_text(encoding="utf-8"))
        put_bytes(whole, CARD_FILE, card(explanation, usage, config, whole).encode())
        whole.replace(out)
    size_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return ExportedVersion(
        version, out, size_bytes, vllm_serve.command(out, usage, config, version.model, place=str(out))
    )


def card(explanation: Explanation, usage: Usage, config: Mapping[str, Any], folder: Path) -> str:
    """Render the model card for the hub.

    Args:
        config: the configuration of the weights, which records how they were trained.
        folder: holds the model's processor.
    """
    own_time = config.get("model_type") != "qwen3_vl"
    version = explanation.version
    return fill(
        "model_card.md.j2",
        trim_blocks=True,
        version=version,
        usage=usage,
        frames=in_words(usage.sampled_frames),
        vllm=vllm_serve.command(folder, usage, config, version.model),
        fewest=counts(usage.sampled_frames)[0],
        limit=vllm_serve.limit_of(usage.sampled_frames),
        commit=explanation.commit or explanation.git_commit,
        ancestors=[ancestor.stage for ancestor in explanation.ancestors],
        data=explanation.data,
        scores=explanation.scores,
        baselines=version.baselines if explanation.scores else None,
        positions=_POSITIONS.get(str(config.get(POSITIONS)), _UNKNOWN_POSITIONS) if own_time else _GRID_A_FRAME,
        counts_otherwise=own_time and config.get(POSITIONS) in _POSITIONS,
        # As Python writes it, for the example.
        prompt=repr(render_prompt("What happens first?", usage.prompt, analysed=usage.analysed)),
    )
