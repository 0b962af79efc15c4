"""Verbs of ``python -m stages``, with the module and the warm process of each. Imports only the
standard library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Process = Literal["data", "model"]


@dataclass(frozen=True)
class Verb:
    """A verb: ``module`` has its ``main``; ``process`` is the warm process that imports it in
    advance."""

    module: str
    process: Process
    #: Modules that ``main`` imports when it is called, and that take long.
    late: tuple[str, ...] = ()


#: All but the last are stages of ``dvc.yaml``. A warm process imports the modules in this order.
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
#: Libraries that each warm process imports before the modules of its verbs; a process also has
#: those of the processes before it.
LIBRARIES: dict[Process, tuple[str, ...]] = {
    "data": (
        *(
            "dvc.repo",
            "dvc.repo.index",
            "dvc.stage.serialize",
            "dvc.dependency",
            "dvc.cachemgr",
            "dvc.data_cloud",
            "scmrepo.git",
        ),
        *("mlflow", "mlflow.store.tracking.sqlalchemy_store", "alembic.config", "alembic.command"),
        *("decord", "scipy.optimize"),
    ),
    "model": ("deepspeed",),
}


def preloaded(process: Process) -> tuple[str, ...]:
    """Modules that a warm process imports before it serves its first request."""
    verbs = [verb for verb in VERBS.values() if verb.process == process]
    return (*LIBRARIES[process], *(module for verb in verbs for module in (verb.module, *verb.late)))
