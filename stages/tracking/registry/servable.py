"""Files beside a version's weights, so that ``mlflow models serve -m models:/NAME@champion``
answers about videos.

The weights stay an ordinary folder under their own hash, and the additions are small: MLflow's
description of the model (a pyfunc from code, no pickle), that code, and the model's usage. They are
generated whenever the version is read, so that every version can be served, and a promotion or a
rollback moves one alias and copies nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from stages.domain.core.prompts import PromptTexts
from stages.domain.core.records import Record, TaskName
from stages.domain.core.timeline import SampledFrames
from stages.domain.tasks import is_analysed
from stages.params import ModelParams, Params
from stages.runtime import paths
from stages.tracking.lineage.source import parse_source
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.assembling import assemble
from stages.tracking.registry.versions import Version
from stages.tracking.runs.run import TAG

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

#: Tag of a version that holds its :class:`Usage`.
USAGE = "usage"
CODE_FILE = "served.py"
DESCRIPTION_FILE = "MLmodel"
#: Bound, as that of frames: usage comes from a registry, and controls how much this machine reads
#: and generates.
MAX_TOKENS = 1 << 17
_CODE = Path(__file__).parents[2] / "tools" / "serving" / CODE_FILE


class Usage(Record):
    """Settings of requests to a model, as in its training; stored with every version."""

    prompt: PromptTexts
    #: Frames of a video in one request: a count, or a rate with bounds.
    sampled_frames: SampledFrames
    #: Limit of a reply in tokens.
    max_new_tokens: int = Field(gt=0, le=MAX_TOKENS)
    #: The model it was trained from, and its precision in evaluation.
    model: ModelParams
    #: Tasks of the row that produced it; empty for a base model. Tasks of a project's own are
    #: names: their code is not needed for requests, and is not looked for.
    tasks: tuple[TaskName, ...]
    #: Its videos were generated shapes.
    generated_corpus: bool

    @property
    def analysed(self) -> bool:
        """True if a question without a task is to be answered with an analysis as its thinking: the
        row was trained on nothing else."""
        return bool(self.tasks) and all(is_analysed(task) for task in self.tasks)

    @property
    def caution(self) -> str | None:
        """Warning for users who ask it about their own videos; None if there is none."""
        if self.generated_corpus and self.model.kind == "tiny":
            return "this model was trained on generated shapes only; on any other video its words mean nothing"
        return None


def usage_of(params: Params, row: str) -> Usage:
    """Usage of the policy of ``row`` (``base``, or a training row) under these parameters."""
    return Usage(
        prompt=params.prompt,
        sampled_frames=params.synthesize.sampled_frames,
        max_new_tokens=params.evaluation.max_new_tokens,
        model=params.model,
        tasks=params.rows[row].trained_tasks if row in params.rows else (),
        generated_corpus=params.ingest.source == paths.CORPUS.as_posix(),
    )


def parse_usage(text: str | bytes, name: str) -> Usage:
    """Read a :class:`Usage`. ``name`` opens the :class:`TrackingError` of a damaged one."""
    try:
        return Usage.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise TrackingError(
            name, f"{field + ': ' if field else ''}{first['msg']}", "write it again: vidbridge register"
        ) from error


def usage_of_version(version: Version) -> Usage:
    """Usage of a registered version.

    Raises:
        TrackingError: it has none, or a damaged one.
    """
    name = f"{version.model} version {version.number}"
    text = version.tags.get(TAG + USAGE)
    if text is None:
        raise TrackingError(
            name,
            f"has no settings for requests (tag {TAG}{USAGE}): it was registered by an older version of this code",
            "bring params.yaml and dvc.lock to the state that it was made from, then: vidbridge register",
        )
    return parse_usage(text, f"{name}: tag {TAG}{USAGE}")


def additions(usage: Usage, model_id: str, created_ms: int) -> dict[str, bytes]:
    """Generate the files, by name, that lie beside the weights of a version. ``model_id``: the hash
    of the content."""
    return {
        DESCRIPTION_FILE: _description(model_id, created_ms).encode(),
        CODE_FILE: _CODE.read_bytes(),
        paths.USAGE_FILE: (usage.model_dump_json(indent=2) + "\n").encode(),
    }


def load_servable(root: Path, version: Version) -> Path:
    """Assemble the folder of a version for ``mlflow models serve -m FOLDER``: its content by hash,
    and our `additions` beside it.

    Nothing is resolved after this: neither MLflow's ``source`` nor its ``storage_location`` is
    read, and no file of the content is run as code.

    Raises:
        TrackingError: it has no usage, its source names no content, neither cache nor remote has
            that content, or it could be written elsewhere.
    """
    usage = usage_of_version(version)
    source = parse_source(version.source, f"{version.model} version {version.number}")
    return assemble(root, paths.SERVABLE, source, additions(usage, source.oid[:32], version.created_ms))


def additions_for(source: str, registry_uri: str) -> dict[str, bytes]:
    """Additions to the content ``source`` where it is read as a version of the registry; empty if
    no version has a usage.

    Of several versions with one content (a base model of two recipes) the newest decides.
    """
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=registry_uri, registry_uri=registry_uri)
    versions: list[ModelVersion] = [
        version for version in client.search_model_versions(f"source_path = '{source}'") if TAG + USAGE in version.tags
    ]
    if not versions:
        return {}
    newest = max(versions, key=lambda version: (version.creation_timestamp, int(version.version)))
    usage = parse_usage(newest.tags[TAG + USAGE], f"{newest.name} version {newest.version}: tag {TAG}{USAGE}")
    return additions(usage, source.removeprefix("dvc://").strip("/")[:32], newest.creation_timestamp)


def signature() -> ModelSignature:
    """Signature of a request and its reply, which MLflow checks before the model sees the
    request."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType, DataType

    text = DataType.string
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(text, "question"),
        ColSpec(text, "video", required=False),
        ColSpec(text, "video_base64", required=False),
        # A list of strings. MLflow supports arrays, but then every row of a request would need one.
        ColSpec(AnyType(), "options", required=False),
        ColSpec(text, "task", required=False),
    ]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(text, "thinking", required=False),
        ColSpec(text, "answer", required=False),
        ColSpec(text, "reply"),
    ]
    return ModelSignature(Schema(inputs), Schema(outputs))


def _description(model_id: str, created_ms: int) -> str:
    from datetime import UTC, datetime

    from mlflow import pyfunc
    from mlflow.models import Model

    created = datetime.fromtimestamp(created_ms / 1000, UTC).replace(tzinfo=None)
    model = Model(signature=signature(), model_uuid=model_id, utc_time_created=created)
    pyfunc.add_to_model(model, loader_module="mlflow.pyfunc.model", model_code_path=CODE_FILE)
    return str(model.to_yaml())
