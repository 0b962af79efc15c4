"""Resolve names of versions: ``models:/NAME@champion``, ``models:/NAME/7``, or an alias or number
of the project's model."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.params import GateParams
from stages.tracking.lineage.uri import TrackingError, display_uri
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
#: Number of names that an error lists.
LISTED = 12


@dataclass(frozen=True)
class Named:
    """A reference to a version: its model, and an alias or a number. ``model`` None: the project's
    model."""

    model: str | None
    which: str


def parse_named(text: str) -> Named:
    """Parse a reference to a version.

    Raises:
        TrackingError: it begins as a ``models:`` URI and is not valid.
    """
    if match := _URI.fullmatch(text):
        return Named(match["name"], match["alias"] or match["number"])
    if text.startswith("models:"):
        raise TrackingError(
            "version", f"{text!r:.200} is not a version", "write models:/NAME@champion or models:/NAME/3"
        )
    return Named(None, text)


def own_model(session: Session) -> str:
    """Registered model of a reference without a model: the project's (``gate.registered_model``),
    outside a project VIDBRIDGE_MODEL.

    Raises:
        TrackingError: neither is set; the message lists the models.
    """
    if session.project is not None:
        return session.params.gate.registered_model
    if name := os.environ.get(MODEL_VARIABLE, "").strip():
        if not _NAME.fullmatch(name):
            raise TrackingError(
                MODEL_VARIABLE,
                f"{name!r:.200} is not the name of a registered model; {_existing_models(session.client)}",
                "name one of these",
            )
        return name
    raise TrackingError(
        MODEL_VARIABLE,
        f"not set, and outside of a project no other setting names the registered model;"
        f" {_existing_models(session.client)}",
        "write models:/NAME@champion, or set it to the name",
    )


def model_of(session: Session, *named: Named) -> str:
    """Return the one model of these references: the one that a URI among them names, else the
    project's.

    Raises:
        TrackingError: they name two models, or none is set.
    """
    models = sorted({item.model for item in named if item.model is not None})
    if len(models) > 1:
        raise TrackingError(
            "versions", f"{models[0]} and {models[1]} are two registered models", "name versions of one"
        )
    return models[0] if models else own_model(session)


def find_named(session: Session, text: str) -> Version:
    """Find the version that ``text`` names.

    Raises:
        TrackingError: there is none; the message lists the existing ones.
    """
    named = parse_named(text)
    model, client = model_of(session, named), session.client
    if (named.model is not None or session.project is None) and not all_versions(client, model):
        raise TrackingError(
            model,
            f"the registry has no version of a model of that name; {_existing_models(client)}",
            "name one of these",
        )
    return find_version(client, model, named.which)


def gate_of(session: Session, model: str) -> GateParams | None:
    """Gate of the project, if ``model`` is the project's own model; None otherwise."""
    if session.project is None:
        return None
    gate = session.params.gate
    return gate if gate.registered_model == model else None


def ledger_of(model: str) -> str:
    """Name of the ledger of a registered model, as its gate has it."""
    gate: dict[str, Any] = {"registered_model": model}
    return GateParams.model_construct(**gate).ledger


def production_of(session: Session, model: str) -> str | None:
    """Model that receives copies of the champions of ``model``: from the project's settings, else
    from the gate's latest decision."""
    if gate := gate_of(session, model):
        return gate.production
    entries = read_ledger(session.client, model, ledger_of(model))
    return next((entry.decided.production for entry in reversed(entries) if entry.standing), None)


def moved_fault(client: MlflowClient, version: Version) -> str | None:
    """Return why this champion was not promoted by the gate, as a sentence with the remedy; None if
    it was, or if it is not champion.

    A copy is checked against the gate of the model that it copies.
    """
    if CHAMPION not in version.aliases:
        return None
    original = version.tags.get(COPY_OF, "").rpartition("/")[0]
    if original:
        return production_fault(client, original, version.model, ledger_of(original))
    return alias_fault(client, version.model, ledger_of(version.model))


def _existing_models(client: MlflowClient) -> str:
    """Format the registered models whose versions can be read as the middle of a sentence. The
    gate's ledgers are excluded."""
    from mlflow.exceptions import MlflowException

    where = display_uri(client.tracking_uri)
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
