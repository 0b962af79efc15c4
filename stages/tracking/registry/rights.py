"""Prove that this account has the rights for its next step, on the objects that will change, before
hours are spent.

MLflow's basic auth has rights for each experiment and each registered model, and reports them only
to their managers. So each is tested by a harmless but meaningful write: which ledger and which
copies belong to a model, and which model an experiment is of.
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
from stages.tracking.runs.store import experiment_id, is_denied, retry_on_conflict, store_error
from stages.tracking.session import Session

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

#: Tag on a model: the model that holds its decisions.
LEDGER = TAG + "ledger"
#: Tag on a ledger, and on a production model: the model that it belongs to.
OF = TAG + "of"
#: Tag on an experiment: the registered model that its runs produce.
MODEL = TAG + "model"


def prove_rights(client: MlflowClient, gate: GateParams) -> None:
    """Check that this account may move the champion: tags and aliases of the model, its ledger and
    its production model.

    The latter two are created here if missing. The model comes first: an account that may not
    change it creates, and so comes to own, nothing.

    Raises:
        TrackingError: names the model that this account may not change, and who can help.
        MlflowException: the store does not answer, or there is no such model.
    """
    model = gate.registered_model
    _prove(client, model, LEDGER, gate.ledger, "")
    kept = {gate.ledger: describe_ledger(model)}
    if gate.production is not None:
        kept[gate.production] = describe_production(model)
    for name, description in kept.items():
        ensure_model(client, name, description)
        _prove(
            client, name, OF, model, ", or, where a stranger made it, to delete it: the next vidbridge promote makes it"
        )


def _prove(client: MlflowClient, model: str, tag: str, value: str, otherwise: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        retry_on_conflict(partial(client.set_registered_model_tag, model, tag, value))
    except MlflowException as error:
        if not is_denied(error):
            raise
        raise store_error(f"registered model {model!r}", error, f"EDIT on it{otherwise}") from error


def prove_experiment(client: MlflowClient, experiment: str, gate: GateParams) -> None:
    """Check that this account may record runs in the experiment with that id.

    Raises:
        TrackingError: it may not.
        MlflowException: the store does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        retry_on_conflict(partial(client.set_experiment_tag, experiment, MODEL, gate.registered_model))
    except MlflowException as error:
        if not is_denied(error):
            raise
        raise store_error(
            f"MLflow experiment {experiment_name()!r}", error, "EDIT on it, or name another: MLFLOW_EXPERIMENT_NAME"
        ) from error


def check_run_rights(session: Session) -> None:
    """Check that a run of this account can be recorded and registered. A model that does not exist
    yet will be its own.

    Raises:
        TrackingError: it cannot, and who can help; or the store does not answer.
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
