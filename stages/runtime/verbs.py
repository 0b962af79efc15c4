"""The verbs of ``python -m stages``: which module does each, and which warm process is asked for
it. Only the standard library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Process = Literal["data", "model"]


@dataclass(frozen=True)
class Verb:
    """``module`` has the ``main`` of the verb; ``process`` is the warm process that imports it
    before it is asked for."""

    module: str
    process: Process
    #: Modules that ``main`` imports once it is called, and that take long.
    late: tuple[str, ...] = ()


#: Each is a stage of ``dvc.yaml``, but the last. A warm process imports the modules in this order.
VERBS: dict[str, Verb] = {
    "corpus": Verb("stages.corpus.stage", "data"),
    "ingest": Verb("stages.ingest.stage", "data"),
    "synthesize": Verb("stages.synthesize.stage", "data"),
    "baselines": Verb("stages.baselines.stage", "data"),
    "summary": Verb("stages.summary.stage", "data"),
    "base": Verb("stages.base.stage", "model"),
    "sft": Verb("stages.sft.stage", "model"),
    "difficulty": Verb("stages.difficulty.stage", "model"),
    "grpo": Verb("stages.grpo.stage", "model", late=("stages.grpo.train",)),
    "evaluate": Verb("stages.evaluate.stage", "model"),
    "rescore": Verb("stages.evaluate.registered", "model"),
}
#: Libraries that each warm process imports before the modules of its verbs; a process has all that
#: those before it have.
LIBRARIES: dict[Process, tuple[str, ...]] = {
    "data": (
        *("dvc.repo", "dvc.repo.index", "dvc.stage.serialize", "dvc.dependency", "dvc.cachemgr", "dvc.data_cloud", "scmrepo.git"),
        *("mlflow", "mlflow.store.tracking.sqlalchemy_store", "alembic.config", "alembic.command"),
        *("decord", "scipy.optimize"),
    ),
    "model": ("deepspeed",),
}


def preloaded(process: Process) -> tuple[str, ...]:
    """The modules that a warm process imports before it answers its first request."""
    mine = [verb for verb in VERBS.values() if verb.process == process]
    return (*LIBRARIES[process], *(module for verb in mine for module in (verb.module, *verb.late)))
