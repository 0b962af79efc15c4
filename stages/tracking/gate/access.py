"""Access to the gate: who asks, with which rights, and one decision at a time on this machine."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.params import GateParams
from stages.runtime.paths import STATE
from stages.tracking.lineage.git import git
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.rights import prove_rights
from stages.tracking.runs.store import locked, store_error
from stages.tracking.session import Session

GATE_WAIT_S = 60


def check_rights(session: Session) -> None:
    """Check, before hours are spent, that this account may decide and record decisions.

    Raises:
        TrackingError: it may not, or the store does not answer.
    """
    gate = session.params.gate
    with store_errors(gate):
        prove_rights(session.client, gate)


@contextmanager
def guard(root: Path, gate: GateParams) -> Iterator[None]:
    """Hold the gate's lock on this machine, which avoids judging twice. Between machines the ledger
    decides."""
    with locked(root / STATE / "gate.lock", GATE_WAIT_S), store_errors(gate):
        yield


@contextmanager
def store_errors(gate: GateParams) -> Iterator[None]:
    """Turn an error of the store into a :class:`TrackingError` that names the gate's models."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise store_error(
            gate.registered_model,
            error,
            f"EDIT on the registered models {' and '.join(repr(name) for name in _models(gate))}",
            "see vidbridge history for the decisions. A promotion that it lists as unfinished is completed by the next"
            " vidbridge promote",
        ) from error


def _models(gate: GateParams) -> list[str]:
    return [gate.registered_model, gate.ledger] + ([gate.production] if gate.production else [])


def author_name(root: Path, author: str | None) -> str:
    """Return the author's name: the argument, else git's identity here, else the user who is logged
    in."""
    if author:
        return author
    try:
        ident = git(root, "-c", "user.useConfigOnly=true", "var", "GIT_AUTHOR_IDENT")
    except TrackingError:  # git has no identity here, and promoting needs none
        return getpass.getuser()
    return ident.rsplit(" ", 2)[0]  # without time and zone
