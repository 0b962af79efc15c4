"""Registered model versions as plain values, and the names of all tags and aliases on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from stages.runtime.paths import LOADED
from stages.tracking.lineage.source import parse_source
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.assembling import assemble
from stages.tracking.registry.score_cards import Baselines, ScoreCard
from stages.tracking.runs.run import TAG

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.tracking import MlflowClient

CANDIDATE = "candidate"
CHAMPION = "champion"
#: Tag on a version: when (milliseconds since the epoch) it was last judged, set before the gate
#: checks its weights.
JUDGING = TAG + "judging"
PAGE = 1000


class _Made(BaseModel):
    """Producer of a dep: a stage, and the hash of its out."""

    stage: str
    out: str


class _Run(BaseModel):
    """Location of scores by sample in a run of MLflow. ``sha256``: of that file; None (earlier
    releases): the location is ignored."""

    run: str
    sha256: str | None = None


class _Outs(BaseModel):
    """Location of scores by sample in outs of DVC."""

    predictions: str
    samples: str


class _Kept(BaseModel):
    """Choice of a watched training (:class:`stages.lib.training.watching.Kept`)."""

    keep: str
    step: int
    score: float | None
    last_step: int
    last_score: float | None


def _score(value: float | None) -> str:
    return "no score" if value is None else f"{value:.3f}"


@dataclass(frozen=True)
class Version:
    """One version: a checkpoint of a stage's out.

    ``parents`` maps a dep's path to the stage that produced it and that stage's out hash.
    """

    model: str
    number: int
    source: str
    run_id: str | None
    aliases: tuple[str, ...]
    created_ms: int
    tags: Mapping[str, str] = field(repr=False)

    def _text(self, name: str) -> str | None:
        return self.tags.get(TAG + name)

    def _read(self, name: str, kind: Any, empty: str = "{}") -> Any:
        """Parse a tag that holds JSON. An account that can write to the registry can write anything
        into tags.

        Raises:
            TrackingError: the tag is not JSON, or not of that kind; names version and tag.
        """
        text = self.tags.get(TAG + name, empty)
        try:
            return TypeAdapter(kind).validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"]))
            raise TrackingError(
                f"{self.model} version {self.number}",
                f"tag {TAG}{name}: {field + ': ' if field else ''}{first['msg']}",
                "delete the version and run vidbridge register where its dvc.lock is checked out, or take another one",
            ) from error

    @property
    def stage(self) -> str:
        return self.tags.get(TAG + "stage", "")

    @property
    def out(self) -> str:
        return self.tags.get(TAG + "out", "")

    @property
    def step(self) -> int:
        return int(self._read("step", int, "0"))

    @property
    def final(self) -> bool:
        return self._text("final") == "true"

    @property
    def kept(self) -> str | None:
        """Choice of a watched training, in words; None: it was not watched, or this is another of
        its checkpoints."""
        if TAG + "kept" not in self.tags:
            return None
        kept: _Kept = self._read("kept", _Kept)
        chosen = f"{kept.keep} checkpoint, step {kept.step}: {_score(kept.score)} on the validation subset"
        other = f"; the last, step {kept.last_step}: {_score(kept.last_score)}"
        return chosen if kept.step == kept.last_step else chosen + other

    @property
    def recipe(self) -> str | None:
        return self._text("recipe")

    @property
    def git_commit(self) -> str | None:
        """HEAD when the stage ran, if its run is known, else at registration."""
        return self._text("git_commit")

    @property
    def lock_commit(self) -> str | None:
        """A commit whose ``dvc.lock`` holds this result, as of the last `register`; the gate
        searches again."""
        return self._text("lock_commit")

    @property
    def params_digest(self) -> str | None:
        return self._text("params_digest")

    @property
    def params(self) -> dict[str, Any]:
        return dict(self._read("params", dict[str, Any]))

    @property
    def data(self) -> dict[str, str]:
        return dict(self._read("data", dict[str, str]))

    @property
    def parents(self) -> dict[str, dict[str, str]]:
        return {dep: producer.model_dump() for dep, producer in self._read("parents", dict[str, _Made]).items()}

    @property
    def scores(self) -> ScoreCard | None:
        return self._read("scores", ScoreCard) if self._text("scores") else None

    def scores_under(self, digest: str) -> ScoreCard | None:
        """Scores under one evaluation: the version's own, or those recorded when the evaluation had
        changed."""
        if (own := self.scores) is not None and own.digest == digest:
            return own
        return self._read(f"scores.{digest}", ScoreCard) if self._text(f"scores.{digest}") else None

    def samples_under(self, digest: str) -> dict[str, str] | None:
        """Location of its scores by sample under one evaluation
        (:mod:`stages.tracking.registry.samples`); None: not recorded."""
        if self._text(f"samples.{digest}"):
            location = self._read(f"samples.{digest}", _Run)
            return None if location.sha256 is None else dict(location.model_dump())
        own = self.scores
        if own is None or own.digest != digest or not self._text("samples"):
            return None
        return dict(self._read("samples", _Outs).model_dump())

    @property
    def gauges(self) -> dict[str, list[float]] | None:
        """Gauge to the last values that its training logged, oldest first; None: registered before
        they were recorded."""
        return dict(self._read("gauges", dict[str, list[float]])) if self._text("gauges") is not None else None

    @property
    def rolls_out(self) -> bool:
        """True if rollouts produced it, so that it has gauges."""
        return self.stage.startswith("grpo@")

    @property
    def verdict(self) -> str | None:
        """The gate's last verdict on it, as Markdown."""
        return self._text("verdict")

    @property
    def removed_videos(self) -> list[str] | None:
        """Removed videos that it learned from, as found by `vidbridge data remove`; None: none
        found."""
        return list(self._read("removed_videos", list[str])) if self._text("removed_videos") is not None else None

    @property
    def freed(self) -> str | None:
        """When `vidbridge gc` freed its weights, as a sentence; None: they are kept."""
        return self._text("freed")

    @property
    def baselines(self) -> Baselines | None:
        return self._read("baselines", Baselines) if self._text("baselines") else None


def registered_model(client: MlflowClient, model: str) -> RegisteredModel | None:
    """The registered model of that name, with its tags and aliases; None if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(model)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def registered_models(client: MlflowClient) -> list[str]:
    """Names of all registered models, those of other projects on this server included."""
    names: list[str] = []
    token: str | None = None
    while True:
        page = client.search_registered_models(max_results=PAGE, page_token=token)
        names += [item.name for item in page]
        token = page.token or None
        if token is None:
            return names


def all_versions(client: MlflowClient, model: str) -> list[Version]:
    """List every version of ``model``, oldest first, with one request per thousand; empty if the
    model is not registered."""
    versions: list[Version] = []
    token: str | None = None
    aliases = _aliases(client, model)
    quote = '"' if "'" in model else "'"
    while True:
        page = client.search_model_versions(f"name = {quote}{model}{quote}", max_results=PAGE, page_token=token)
        versions += [_version(item, aliases) for item in page]
        token = page.token or None
        if not token:
            return sorted(versions, key=lambda version: version.number)


def find_version(client: MlflowClient, model: str, which: str | int) -> Version:
    """Find the version with that number or alias.

    Raises:
        TrackingError: there is none; the message lists the existing ones.
    """
    name = str(which)
    versions = all_versions(client, model)
    for version in versions:
        if name in (str(version.number), *version.aliases):
            return version
    if not versions:
        raise TrackingError(
            model,
            f"no version {name!r}: none is registered yet",
            "run vidbridge run, or vidbridge register after dvc repro",
        )
    latest = ", ".join(
        f"{version.number}" + (f" ({', '.join(version.aliases)})" if version.aliases else "")
        for version in versions[-8:]
    )
    remedy = "run vidbridge promote" if name == CHAMPION else "take one of these"
    raise TrackingError(model, f"no version {name!r} (latest: {latest})", remedy)


def load_version(root: Path, version: Version) -> Path:
    """Path of a version's folder on this machine: weights linked from the DVC cache, fetched from
    the DVC remote where needed.

    Raises:
        TrackingError: neither has it, its source names no content, or that content could be written
            elsewhere.
    """
    return assemble(root, LOADED, parse_source(version.source, f"{version.model} version {version.number}"), {})


def _aliases(client: MlflowClient, model: str) -> dict[int, list[str]]:
    registered = registered_model(client, model)
    named: dict[int, list[str]] = {}
    for alias, number in registered.aliases.items() if registered else ():
        named.setdefault(int(number), []).append(alias)
    return named


def _version(item: ModelVersion, aliases: Mapping[int, list[str]]) -> Version:
    number = int(item.version)
    return Version(
        model=item.name,
        number=number,
        source=item.source or "",
        run_id=item.run_id or None,
        aliases=tuple(sorted(aliases.get(number, ()))),
        created_ms=item.creation_timestamp,
        tags=dict(item.tags),
    )
