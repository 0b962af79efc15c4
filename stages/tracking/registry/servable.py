"""What a version is given beside its weights, so that ``mlflow models serve -m models:/NAME@champion`` answers about videos.

The weights stay an ordinary folder under their own hash, and what is added is small: MLflow's description of the model (a pyfunc
from code, no pickle), that code, and how the model wants to be asked. It is made anew whenever the version is read, so that every
version can be served, and a promotion or a rollback moves one alias and copies nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from stages.domain.core.prompts import PromptTexts
from stages.domain.core.records import Record
from stages.domain.tasks import KnownTask, task_of
from stages.params import ModelParams, Params
from stages.runtime import paths
from stages.tracking.lineage.cache import parse_source
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.assembling import assemble
from stages.tracking.registry.versions import Version
from stages.tracking.runs.run import TAG

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

#: The tag of a version that holds its :class:`Usage`.
USAGE = "usage"
CODE_FILE = "served.py"
DESCRIPTION_FILE = "MLmodel"
#: It comes from a registry, and says what is read and made on this machine.
MAX_FRAMES, MAX_TOKENS = 4096, 1 << 17
_CODE = Path(__file__).parents[2] / "tools" / "serving" / CODE_FILE


class Usage(Record):
    """How a model was trained to be asked; it travels with every version."""

    prompt: PromptTexts
    #: Frames that it is shown of a video.
    sampled_frames: int = Field(gt=0, le=MAX_FRAMES)
    #: A reply is cut off after so many tokens.
    max_new_tokens: int = Field(gt=0, le=MAX_TOKENS)
    #: What it was trained from, and the precision in which it is evaluated.
    model: ModelParams
    #: Tasks of the row that made it; none for a base model.
    tasks: tuple[KnownTask, ...]
    #: Its videos were generated shapes.
    generated_corpus: bool

    @property
    def analysed(self) -> bool:
        """Whether the thinking on a question that names no task is to be an analysis: the row was trained on nothing else."""
        return bool(self.tasks) and all(task_of(task).analysed for task in self.tasks)

    @property
    def caution(self) -> str | None:
        """What whoever asks it about videos of their own has to know; None: nothing."""
        if self.generated_corpus and self.model.kind == "tiny":
            return "this model was trained on generated shapes only; on any other video its words mean nothing"
        return None


def usage_of(params: Params, row: str) -> Usage:
    """How the policy of ``row`` (``base``, or a training row) is asked under these parameters."""
    return Usage(
        prompt=params.prompt,
        sampled_frames=params.synthesize.sampled_frames,
        max_new_tokens=params.evaluation.max_new_tokens,
        model=params.model,
        tasks=params.rows[row].trained_tasks if row in params.rows else (),
        generated_corpus=params.ingest.source == paths.CORPUS.as_posix(),
    )


def parse_usage(text: str | bytes, name: str) -> Usage:
    """Read a :class:`Usage`; ``name`` opens the :class:`TrackingError` that a damaged one raises."""
    try:
        return Usage.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise TrackingError(f"{name}: {field + ': ' if field else ''}{first['msg']}; write it again: vidbridge register") from error


def usage_of_version(version: Version) -> Usage:
    """How a registered version is asked.

    Raises:
        TrackingError: it does not say, or what it says is damaged.
    """
    name = f"{version.model} version {version.number}"
    text = version.tags.get(TAG + USAGE)
    if text is None:
        raise TrackingError(
            f"{name}: does not say how it is asked (tag {TAG}{USAGE}): it was registered by an older version of this code; bring"
            " params.yaml and dvc.lock to the state that it was made from, then: vidbridge register"
        )
    return parse_usage(text, f"{name}: tag {TAG}{USAGE}")


def additions(usage: Usage, model_id: str, created_ms: int) -> dict[str, bytes]:
    """The files, by name, that lie beside the weights of a version. ``model_id``: the hash of the content."""
    return {
        DESCRIPTION_FILE: _description(model_id, created_ms).encode(),
        CODE_FILE: _CODE.read_bytes(),
        paths.USAGE_FILE: (usage.model_dump_json(indent=2) + "\n").encode(),
    }


def load_servable(root: Path, version: Version) -> Path:
    """The folder of a version as ``mlflow models serve -m FOLDER`` takes it: its content by hash, and beside it `additions`, written by us.

    Nobody resolves anything after this: neither MLflow's ``source`` nor its ``storage_location`` is asked, and no file of the content
    is code that is run.

    Raises:
        TrackingError: it does not say how it is asked, its source names no content, neither cache nor remote has that, or it could be
            written elsewhere.
    """
    usage = usage_of_version(version)
    source = parse_source(version.source, f"{version.model} version {version.number}")
    return assemble(root, paths.SERVABLE, source, additions(usage, source.oid[:32], version.created_ms))


def additions_for(source: str, registry_uri: str) -> dict[str, bytes]:
    """What is added to the content ``source`` where it is read as a version of the registry; nothing where none says how it is
    used. Of several with one content (a base model of two recipes) the newest says it.
    """
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=registry_uri, registry_uri=registry_uri)
    found: list[ModelVersion] = [
        version for version in client.search_model_versions(f"source_path = '{source}'") if TAG + USAGE in version.tags
    ]
    if not found:
        return {}
    newest = max(found, key=lambda version: (version.creation_timestamp, int(version.version)))
    usage = parse_usage(newest.tags[TAG + USAGE], f"{newest.name} version {newest.version}: tag {TAG}{USAGE}")
    return additions(usage, source.removeprefix("dvc://").strip("/")[:32], newest.creation_timestamp)


def signature() -> ModelSignature:
    """What a request holds and what comes back, as MLflow checks it before the model sees it."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType, DataType

    text = DataType.string
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(text, "question"),
        ColSpec(text, "video", required=False),
        ColSpec(text, "video_base64", required=False),
        # A list of strings. MLflow knows arrays, but then every row of a request would have to have one.
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
