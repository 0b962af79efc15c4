"""Proof that this account may do what it is about to begin, on the objects that will change, before hours are spent or anything is decided.

MLflow's basic auth knows rights for each experiment and each registered model, and tells them to nobody but their managers. So each is
tried out by a harmless write that says something: which ledger and which copies belong to a model, and which model an experiment is of.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from stages.params import GateParams
from stages.tracking.lineage.uri import experiment_name
from stages.tracking.registry.ledger import describe_ledger, ensure_model
from stages.tracking.registry.production import describe_production
from stages.tracking.registry.versions import registered_model
from stages.tracking.runs.run import TAG
from stages.tracking.runs.store import experiment_id, insist, is_denied, store_error
from stages.tracking.session import Session

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

#: On a model: the model that holds the decisions about it.
LEDGER = TAG + "ledger"
#: On a ledger, and on a production model: the model that it belongs to.
OF = TAG + "of"
#: On an experiment: the registered model that its runs work for.
MODEL = TAG + "model"


def prove_rights(client: MlflowClient, gate: GateParams) -> None:
    """Make sure that this account may move the champion: tags and aliases of the model, its ledger and its production model, which are
    made here where they are missing. The model comes first: who may not change it makes, and so comes to own, nothing.

    Raises:
        TrackingError: naming the model that this account may not change, and who can help.
        MlflowException: the store does not answer, or there is no such model.
    """
    model = gate.registered_model
    _prove(client, model, LEDGER, gate.ledger, "")
    kept = {gate.ledger: describe_ledger(model)}
    if gate.production is not None:
        kept[gate.production] = describe_production(model)
    for name, description in kept.items():
        ensure_model(client, name, description)
        _prove(client, name, OF, model, ", or, where a stranger made it, to delete it: the next vidbridge promote makes it")


def _prove(client: MlflowClient, model: str, tag: str, value: str, otherwise: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        insist(partial(client.set_registered_model_tag, model, tag, value))
    except MlflowException as error:
        if not is_denied(error):
            raise
        raise store_error(f"registered model {model!r}", error, f"EDIT on it{otherwise}") from error


def prove_experiment(client: MlflowClient, experiment: str, gate: GateParams) -> None:
    """Make sure that this account may record runs in the experiment with that id.

    Raises:
        TrackingError: it may not.
        MlflowException: the store does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        insist(partial(client.set_experiment_tag, experiment, MODEL, gate.registered_model))
    except MlflowException as error:
        if not is_denied(error):
            raise
        raise store_error(
            f"MLflow experiment {experiment_name()!r}", error, "EDIT on it, or name another: MLFLOW_EXPERIMENT_NAME"
        ) from error


def check_run_rights(session: Session) -> None:
    """Find out whether a run of this account will be recorded and registered. A model that is not there yet will be its own.

    Raises:
        TrackingError: it will not, and who can help; or the store does not answer.
    """
    from mlflow.exceptions import MlflowException

    gate, client = session.params.gate, session.client
    try:
        prove_experiment(client, experiment_id(client, session.root), gate)
        if registered_model(client, gate.registered_model) is not None:
            prove_rights(client, gate)
    except MlflowException as error:
        raise store_error(
            "MLflow", error, f"EDIT on the experiment and on the registered model {gate.registered_model!r}"
        ) from error
