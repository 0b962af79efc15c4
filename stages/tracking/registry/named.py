"""Which version is meant: ``models:/NAME@champion``, ``models:/NAME/7``, or an alias or a number of one's own model."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.params import GateParams
from stages.tracking.lineage.uri import TrackingError, shown
from stages.tracking.registry.ledger import ENTRY, alias_fault, read_ledger
from stages.tracking.registry.production import COPY_OF, production_fault
from stages.tracking.registry.versions import CHAMPION, Version, all_versions, find_version
from stages.tracking.session import Session

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MODEL_VARIABLE = "VIDBRIDGE_MODEL"
#: MLflow allows neither "/" nor ":" in a name; a quotation mark would end it in a search.
_NAME = re.compile(r"[^/@:\x22\x27]+")
_URI = re.compile(rf"models:/(?P<name>{_NAME.pattern})(?:@(?P<alias>[^/@]+)|/(?P<number>\d+))")
#: How many names an error lists.
LISTED = 12


@dataclass(frozen=True)
class Named:
    """A version as it was named: by its model, and by an alias or a number of that. ``model`` None: one's own."""

    model: str | None
    which: str


def parse_named(text: str) -> Named:
    """Read what names a version.

    Raises:
        TrackingError: it begins as a ``models:`` URI and is none.
    """
    if found := _URI.fullmatch(text):
        return Named(found["name"], found["alias"] or found["number"])
    if text.startswith("models:"):
        raise TrackingError(f"{text!r:.200} is no version; write models:/NAME@champion or models:/NAME/3")
    return Named(None, text)


def own_model(session: Session) -> str:
    """The registered model that a name without one means: the project's (``gate.registered_model``), outside of one VIDBRIDGE_MODEL.

    Raises:
        TrackingError: neither says it; the message names the models there are.
    """
    if session.project is not None:
        return session.params.gate.registered_model
    if given := os.environ.get(MODEL_VARIABLE, "").strip():
        if not _NAME.fullmatch(given):
            raise TrackingError(
                f"{MODEL_VARIABLE}: {given!r:.200} is no name of a registered model; {_there(session.client)}; name one of these"
            )
        return given
    raise TrackingError(
        f"{MODEL_VARIABLE}: not set, and outside of a project nothing else says which registered model is meant; {_there(session.client)};"
        " write models:/NAME@champion, or set it to the name"
    )


def model_of(session: Session, *named: Named) -> str:
    """The one model that these are versions of: the one that a URI among them names, else one's own.

    Raises:
        TrackingError: they name two models, or none and nothing else says it.
    """
    models = sorted({item.model for item in named if item.model is not None})
    if len(models) > 1:
        raise TrackingError(f"{models[0]} and {models[1]} are two registered models; name versions of one")
    return models[0] if models else own_model(session)


def find_named(session: Session, text: str) -> Version:
    """The version that ``text`` names.

    Raises:
        TrackingError: there is none; the message names what there is.
    """
    named = parse_named(text)
    model, client = model_of(session, named), session.client
    if (named.model is not None or session.project is None) and not all_versions(client, model):
        raise TrackingError(f"{model}: the registry has no version of a model of that name; {_there(client)}; name one of these")
    return find_version(client, model, named.which)


def gate_of(session: Session, model: str) -> GateParams | None:
    """The gate of the project where ``model`` is the project's own; None: this project, or none, does not decide about it."""
    if session.project is None:
        return None
    gate = session.params.gate
    return gate if gate.registered_model == model else None


def ledger_of(model: str) -> str:
    """The ledger of a registered model, as its gate names it."""
    gate: dict[str, Any] = {"registered_model": model}
    return GateParams.model_construct(**gate).ledger


def production_of(session: Session, model: str) -> str | None:
    """The model that is given copies of the champions of ``model``: as the project says, else as the gate's latest decision does."""
    if gate := gate_of(session, model):
        return gate.production
    entries = read_ledger(session.client, model, ledger_of(model))
    return next((entry.decided.production for entry in reversed(entries) if entry.standing), None)


def moved_fault(client: MlflowClient, version: Version) -> str | None:
    """Why it is not the gate that made this version champion, as a sentence with the remedy; None: it is, or the version is no champion.

    Of a copy the gate of the model that it is a copy of is asked.
    """
    if CHAMPION not in version.aliases:
        return None
    original = version.tags.get(COPY_OF, "").rpartition("/")[0]
    if original:
        return production_fault(client, original, version.model, ledger_of(original))
    return alias_fault(client, version.model, ledger_of(version.model))


def _there(client: MlflowClient) -> str:
    """The registered models whose versions can be read, as the middle of a sentence. The gate's ledgers are none of them."""
    from mlflow.exceptions import MlflowException

    where = shown(client.tracking_uri)
    names: list[str] = []
    token: str | None = None
    try:
        while len(names) <= LISTED:
            page = client.search_registered_models(max_results=100, page_token=token)
            names += [
                model.name
                for model in page
                if model.latest_versions and not any(ENTRY in version.tags for version in model.latest_versions)
            ]
            token = page.token or None
            if not token:
                break
    except MlflowException as error:
        return f"{where} does not list its models ({error})"
    if not names:
        return f"{where} has no registered models"
    more = " and others" if len(names) > LISTED else ""
    return f"{where} has {', '.join(sorted(names)[:LISTED])}{more}"
