"""``vidbridge deploy`` and ``vidbridge ui``: scheduled runs, and the pages of Prefect and
MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli import app


def deploy(
    cron: Annotated[
        str | None, typer.Option(help="Schedule of checks for new videos; default: that of infra/prefect.yaml.")
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(help="Time zone of the schedule, such as Europe/Berlin; default: UTC.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="Folder of videos to watch, as the worker sees it; overrides ingest.source.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe to run; default: params.yaml as it is.")] = None,
    branch: Annotated[str | None, typer.Option(help="Branch to run; default: the one checked out.")] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the deployment; another name creates another one. Default: that of infra/prefect.yaml."
        ),
    ] = None,
    repository: Annotated[
        str | None, typer.Option(help="URL that a worker elsewhere clones; default: the worker's own project.")
    ] = None,
    directory: Annotated[
        str | None, typer.Option(help="Project's folder inside --repository; default: its top.")
    ] = None,
    pool: Annotated[str | None, typer.Option(help="Work pool whose workers run it; default: vidbridge.")] = None,
    worker: Annotated[bool, typer.Option(help="Stay, and execute the scheduled runs.")] = True,
    port: Annotated[int, typer.Option(help="Port of Prefect's server if none runs yet; 0: any free one.")] = 0,
) -> None:
    """Create a scheduled deployment, and serve it until Ctrl-C.

    It is described in infra/prefect.yaml.

    Each deployment has its own clone on the worker. A paused schedule stays paused; an existing
    work pool stays as it is.

    Example: vidbridge deploy --cron "0 3 * * *" --timezone Europe/Berlin --source /data/videos

    Example, for workers elsewhere: vidbridge deploy --repository
    https://git.example.org/team/videos.git --branch main --pool gpus --name nightly-gpus
    --no-worker, and there: prefect worker start --pool gpus --type process
    """
    root = app.root()
    from flows.deployments import deploy as deploying
    from flows.deployments.options import deployment_request

    order, notes = deployment_request(
        root,
        cron=cron or None,
        timezone=timezone,
        source=source,
        recipe=recipe or None,
        repository=repository,
        directory=directory,
        branch=branch,
        pool=pool,
        name=name,
    )
    deploying.deploy(root, order, notes, worker, port)


def ui(
    prefect_port: Annotated[int, typer.Option(help="Port of Prefect's pages; 0: any free one.")] = 0,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow's pages; 0: any free one.")] = 0,
) -> None:
    """Serve Prefect's and MLflow's pages here until Ctrl-C.

    They require a password, which is printed.

    Example: vidbridge ui --mlflow-port 5000
    """
    from flows.serving import pages

    pages.ui(app.root(), prefect_port, mlflow_port)
