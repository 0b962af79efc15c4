"""Resolve and load a model: a version of the registry, a folder, or a model of the hub, with its
prompt settings."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.domain.core.prompts import PromptTexts
from stages.params import Params, Precision, PretrainedModelParams
from stages.runtime import paths
from stages.tools.suites.engines.questions import EngineError
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.named import find_named, parse_named
from stages.tracking.registry.servable import USAGE, Usage, parse_usage, usage_of_version
from stages.tracking.registry.versions import Version, load_version
from stages.tracking.runs.run import TAG
from stages.tracking.session import Session

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

#: SPEC 1: most pixels per frame, if no recipe says otherwise.
MAX_PIXELS_PER_FRAME = 196 * 28 * 28
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REMEDY = (
    "copy the files of the model it was trained from beside it:"
    " AutoProcessor.from_pretrained(MODEL).save_pretrained(FOLDER)"
)


@dataclass(frozen=True)
class SelectedModel:
    """A model that was selected by name.

    Attributes:
        name: for people.
        identity: of its weights; equal ones reply alike.
        prompt, max_new_tokens, precision: settings of its training if it records them, else those
            of ``params.yaml``.
        has_settings: whether it records them.
        version: in the registry.
        folder: that it is loaded from; None: the hub's cache.
    """

    name: str
    identity: dict[str, str]
    prompt: PromptTexts
    max_new_tokens: int
    precision: Precision
    has_settings: bool
    version: Version | None
    load: Callable[[], tuple[PreTrainedModel, ProcessorMixin]]
    folder: Path | None = None


def select_model(session: Session, params: Params, which: str, revision: str | None) -> SelectedModel:
    """Resolve ``which``: ``models:/NAME@ALIAS``, ``models:/NAME/3``, an alias or a number of the
    project's registered model, a Hugging Face folder, or a hub id with its revision.

    Nothing is loaded yet.

    Raises:
        EngineError: there is no such model, the folder lacks a model or a processor, or a revision
            is given for a model that has none.
        TrackingError: the registry has no such version, or its files are in neither cache nor
            remote.
    """
    folder = Path(which).expanduser()
    if revision is not None and (_looks_like_a_folder(which, folder) or not _HUB_ID.fullmatch(which)):
        raise EngineError(
            "--revision",
            f"means nothing for {which!r}, a folder or a version of the registry, which stand for their weights",
            "leave it out",
        )
    if _looks_like_a_folder(which, folder):
        return _of_folder(params, folder)
    if which.startswith("models:"):
        try:
            parse_named(which)
        except TrackingError as error:
            raise EngineError.from_error(error, within="--model") from error
        return _of_registry(session, params, which)
    if _HUB_ID.fullmatch(which):
        return _of_hub(params, which, revision)
    if "/" in which:
        raise EngineError("--model", f"{which!r} is not a folder with a model, a version or a hub id", "correct it")
    return _of_registry(session, params, which)


def _looks_like_a_folder(which: str, folder: Path) -> bool:
    return which.startswith(("/", "./", "../", "~")) or (folder / "config.json").is_file()


def _of_registry(session: Session, params: Params, which: str) -> SelectedModel:
    version = find_named(session, which)
    usage = usage_of_version(version) if TAG + USAGE in version.tags else None
    folder = load_version(session.root, version)
    name = f"{version.model} version {version.number}"
    check_folder(folder, name)
    return _selected(params, name, {"model": version.model, "weights": version.source}, usage, version, folder)


def _of_folder(params: Params, folder: Path) -> SelectedModel:
    if not folder.is_dir():
        raise EngineError(
            "--model", f"{str(folder)!r} is not a folder", "name one that holds a model, a version, or a hub id"
        )
    check_folder(folder, str(folder))
    file = folder / paths.USAGE_FILE
    usage = parse_usage(file.read_bytes(), str(file)) if file.is_file() else None
    return _selected(
        params, "/".join(folder.resolve().parts[-2:]), {"weights": f"sha256:{_content(folder)}"}, usage, None, folder
    )


def _of_hub(params: Params, name: str, revision: str | None) -> SelectedModel:
    if revision is None:
        raise EngineError("--revision", f"not set, and {name!r} is a model of the hub", "pass its commit")
    if not _COMMIT.fullmatch(revision):
        raise EngineError(
            "--revision", f"{revision!r} may mean another model tomorrow", "pass the commit, 40 hex digits"
        )
    same = params.model if isinstance(params.model, PretrainedModelParams) and params.model.name == name else None
    pixels = same.max_pixels_per_frame if same else MAX_PIXELS_PER_FRAME
    identity = {"weights": f"{name}@{revision}", "max_pixels_per_frame": str(pixels)}
    load = partial(_load_hub, name, revision, params.model.precision, pixels)
    return SelectedModel(
        name, identity, params.prompt, params.evaluation.max_new_tokens, params.model.precision, False, None, load
    )


def _selected(
    params: Params, name: str, identity: dict[str, str], usage: Usage | None, version: Version | None, folder: Path
) -> SelectedModel:
    precision = usage.model.precision if usage else params.model.precision
    return SelectedModel(
        name=name,
        identity=identity,
        prompt=usage.prompt if usage else params.prompt,
        max_new_tokens=usage.max_new_tokens if usage else params.evaluation.max_new_tokens,
        precision=precision,
        has_settings=usage is not None,
        version=version,
        load=partial(_load_folder, folder, precision, name),
        folder=folder,
    )


def check_folder(folder: Path, name: str) -> None:
    """Check that a folder has the files of a model that takes videos.

    Raises:
        EngineError: one is missing.
    """
    if not (folder / "config.json").is_file():
        raise EngineError("--model", f"{name}: holds no model (config.json is missing)", "name a Hugging Face folder")
    lacks = None if any((folder / file).is_file() for file in _PROCESSOR_FILES) else _PROCESSOR_FILES[0]
    if lacks is None and not (folder / "tokenizer_config.json").is_file():
        lacks = "tokenizer_config.json"
    if lacks is not None:
        raise EngineError(
            "--model",
            f"{name}: a checkpoint without a processor ({lacks} is missing), so it cannot be shown a video",
            _REMEDY,
        )


def _load_folder(folder: Path, precision: Precision, name: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a model and its processor from a folder.

    Raises:
        EngineError: a file is missing or damaged, its weights are not safetensors, it needs code of
            its own, or the processor cannot format a question about a video for this model.
    """
    from safetensors import SafetensorError

    from stages.lib.models.harmless import fault_of_files
    from stages.lib.models.load import load_model

    if fault := fault_of_files(folder):
        raise EngineError("--model", f"{name}: {fault.problem}", fault.remedy)
    processor: Any
    try:
        model, processor = load_model(folder, precision)
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).strip().splitlines()[:1] or [repr(error)]
        raise EngineError(
            "--model", f"{name}: cannot be loaded, a file is missing or damaged ({first[0]})", "copy the folder again"
        ) from error
    if processor.chat_template is None:
        lacks = "chat_template.jinja"
    elif processor.tokenizer.convert_tokens_to_ids(processor.video_token) != model.config.video_token_id:
        lacks = "tokenizer.json"
    else:
        return model, processor
    raise EngineError(
        "--model",
        f"{name}: a checkpoint without a whole processor ({lacks} is missing, or another model's), so it"
        f" cannot be shown a video",
        _REMEDY,
    )


def _load_hub(name: str, revision: str, precision: Precision, pixels: int) -> tuple[PreTrainedModel, ProcessorMixin]:
    from stages.lib.models.load import ModelUnavailableError, load_pretrained

    try:
        return load_pretrained(name, revision, precision, pixels)
    except ModelUnavailableError as error:
        # Its message refers to params.yaml, which does not name this model.
        problem = error.problem.replace("model.revision", "--revision")
        raise EngineError("--model", problem, error.remedy) from error


def _content(folder: Path) -> str:
    """One hash of all files at the top of a folder, names and contents, except documentation."""
    whole: Any = hashlib.sha256()
    for file in sorted(file for file in folder.iterdir() if file.is_file() and file.suffix != ".md"):
        with file.open("rb") as opened:
            whole.update(f"{file.name}\0{hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return str(whole.hexdigest())
