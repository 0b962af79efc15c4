"""One state of a project for a command: its folder, and its resources, each opened once and on
first use."""

from __future__ import annotations

import threading
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from stages.params import Params, load_params
from stages.runtime import paths
from stages.tracking.lineage.cache import ContentStore
from stages.tracking.lineage.cache_folder import is_cache
from stages.tracking.lineage.opening import open_content
from stages.tracking.lineage.uri import TrackingError, patience_of_run_s
from stages.tracking.runs.store import open_client

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


class Session:
    """The project at ``root`` with its parameters, an MLflow client and DVC's objects.

    Outside a project ``root`` is a cache folder, which has no parameters. A session stands for one
    state of the project: where ``params.yaml`` or the checkout may have changed, open another.
    Threads may share it. DVC's objects are closed by ``with``, else with the session itself.
    """

    #: No ``__dict__``: Prefect takes an argument of a flow apart and stores it, and the address of
    #: a client may hold a password.
    __slots__ = ("__weakref__", "_client", "_close", "_content", "_lock", "_params", "_stack", "root")

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.RLock()
        self._params: Params | None = None
        self._client: MlflowClient | None = None
        self._content: ContentStore | None = None
        self._stack = ExitStack()
        self._close = weakref.finalize(self, self._stack.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def project(self) -> Path | None:
        """The project's folder; None outside a project."""
        return None if is_cache(self.root) else self.root

    @property
    def params(self) -> Params:
        """The parameters, as ``params.yaml`` had them on first use.

        Raises:
            TrackingError: this is not a project.
            ParamsError: the file is missing or breaks a rule.
        """
        with self._lock:
            if self._params is None:
                if self.project is None:
                    raise TrackingError(
                        paths.PARAMS_FILE,
                        f"{self.root} is a cache folder, and this needs the parameters of a project",
                        "cd into a clone (git clone URL), or set VIDBRIDGE_PROJECT to one",
                    )
                self._params = load_params(self.root / paths.PARAMS_FILE)
            return self._params

    @property
    def client(self) -> MlflowClient:
        """Client of the project's store (:func:`stages.tracking.runs.store.open_client`).

        A run that a worker started waits for a store that does not answer; a person does not.

        Raises:
            TrackingError: the store does not answer, or denies access.
        """
        with self._lock:
            if self._client is None:
                self._client = open_client(self.root, patience_of_run_s())
            return self._client

    @property
    def content(self) -> ContentStore:
        """DVC's objects: the cache, then the remote
        (:func:`stages.tracking.lineage.opening.open_content`). Opening takes a second.

        Raises:
            TrackingError: DVC's configuration cannot be read.
        """
        with self._lock:
            if self._content is None:
                self._content = self._stack.enter_context(open_content(self.root))
            return self._content
