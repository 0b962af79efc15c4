"""What a run keeps when a server goes: ``make outages``.

Each trial trains `grpo@bridge`, evaluates it and registers what came of it on a team's servers, and
takes one of them away for a while: killed (and started again with what it had kept), stopped (it
holds its port and says nothing), cut off (nobody listens), or slow (each packet takes a second).
Once while the training works, once when it has ended: then the next stage starts, and the
registration falls into it. Afterwards the registry, the metrics and the files are compared with a
trial that nothing disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ruamel.yaml import YAML

from tests.support.checkout import ROOT
from tests.support.projects.repository import commit
from tests.support.projects.smoke import make_project
from tests.support.servers import hosts, stack
from tests.support.servers.hosts import Host, make_hosts
from tests.support.servers.stack import Stack

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

RESULT = ROOT / "benchmarks/results/outages.md"
STEPS, SAVE_STEPS = 60, 20
ROW, TARGET = "bridge", "evaluate@bridge"
AGAIN = ("grpo@bridge", TARGET)
TAG = "vidbridge."
LONGEST_S = 900
#: A server and what may happen to it. The S3 store of these tests keeps its objects in memory, so
#: it is cut off instead of killed.
TROUBLES = [
    *((name, how) for name in ("mlflow", "postgres", "prefect") for how in ("killed", "stopped", "slow")),
    *(("s3", how) for how in ("cut off", "stopped", "slow")),
]
WHEN = ("within the training", "behind it")


@dataclass(frozen=True)
class Seen:
    """What a trial left behind."""

    status: int
    seconds: float
    #: Metric points of the training by (name, step), how often each is there.
    points: dict[tuple[str, int], int]
    pages: int
    checkpoints: int
    #: Content of the versions of the trial's model, by stage.
    versions: tuple[str, ...]
    running: int
    said: str


def prepare(host: Host, url: str) -> None:
    """A clone on that host with all that stands before the training."""
    host.clone(url)
    host.vidbridge("run", "--yes", "sft@cold-start", timeout_s=LONGEST_S)


def set_model(project: Path, name: str) -> None:
    """Another registered model, so that everything is registered again; no stage depends on it."""
    yaml = YAML()
    table = yaml.load((project / "params.yaml").read_text(encoding="utf-8"))
    table["gate"]["registered_model"] = name
    with (project / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(table, file)


def forget(host: Host) -> None:
    """The training and its evaluation have never run here."""
    shutil.rmtree(host.project / ".dvc/cache/runs", ignore_errors=True)
    shutil.rmtree(host.project / ".vidbridge/scratch", ignore_errors=True)
    for folder in (f"models/{ROW}", f"scores/{ROW}"):
        shutil.rmtree(host.project / folder, ignore_errors=True)
    lock, yaml = host.project / "dvc.lock", YAML()
    table = yaml.load(lock.read_text(encoding="utf-8"))
    for stage in AGAIN:
        table["stages"].pop(stage, None)
    with lock.open("w", encoding="utf-8") as file:
        yaml.dump(table, file)


def trial(servers: Stack, host: Host, name: str, trouble: Callable[[Path], None]) -> Seen:
    """Run it; ``trouble`` is called as soon as it has started."""
    forget(host)
    set_model(host.project, name)
    log = host.folder / f"{name}.log"
    began = time.monotonic()
    process = host.start("vidbridge", "run", "--yes", TARGET, cwd=host.project, log=log)
    try:
        trouble(host.project)
        status = process.wait(LONGEST_S)
    except subprocess.TimeoutExpired:
        status = -1
    finally:
        process.kill()
        process.wait()
    seconds = time.monotonic() - began
    said = log.read_text(encoding="utf-8", errors="replace")
    if status > 0:
        # What a person would do next.
        again = host.call("vidbridge", "run", "--yes", TARGET, cwd=host.project, timeout_s=LONGEST_S)
        said += f"\n--- again: {again.returncode}\n{again.stdout}{again.stderr}"
    return look(servers, name, status, seconds, said)


def look(servers: Stack, name: str, status: int, seconds: float, said: str) -> Seen:
    os.environ.update({key: value for key, value in servers.env().items() if key.startswith("MLFLOW_")})
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    versions = tuple(sorted(f"{version.tags.get(TAG + 'stage')} {version.source}" for version in found(client, name)))
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    running = client.search_runs(experiments, "attributes.status = 'RUNNING'")
    trained = newest_training(client, experiments)
    points: dict[tuple[str, int], int] = {}
    pages = checkpoints = 0
    if trained is not None:
        for metric in trained.data.metrics:
            for point in client.get_metric_history(trained.info.run_id, metric):
                points[metric, point.step] = points.get((metric, point.step), 0) + 1
        pages = count_pages(client, trained.info.run_id)
        checkpoints = sum(key.startswith(f"{TAG}checkpoint.") for key in trained.data.tags)
    return Seen(status, seconds, points, pages, checkpoints, versions, len(running), said)


def found(client: MlflowClient, name: str) -> list[object]:
    return list(client.search_model_versions(f"name = '{name}'"))


def newest_training(client: MlflowClient, experiments: Sequence[str]) -> Run | None:
    runs = client.search_runs(
        list(experiments), f"tags.`{TAG}stage` = 'grpo@{ROW}'", order_by=["attributes.start_time DESC"]
    )
    return runs[0] if runs else None


def count_pages(client: MlflowClient, run_id: str, path: str | None = None) -> int:
    files = client.list_artifacts(run_id, path)
    return sum(count_pages(client, run_id, file.path) if file.is_dir else 1 for file in files)


def wait_for(path: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not path():
        if time.monotonic() > deadline:
            raise TimeoutError("the training did not come so far")
        time.sleep(0.05)


def make_trouble(servers: Stack, server: str, how: str, when: str, seconds: float) -> Callable[[Path], None]:
    service = getattr(servers, server)

    def trouble(project: Path) -> None:
        if when == WHEN[0]:
            wait_for(lambda: any((project / ".vidbridge/scratch").glob(f"grpo-{ROW}/*/state/checkpoint-{SAVE_STEPS}")))
        else:
            wait_for(lambda: (project / f"models/{ROW}/checkpoints.jsonl").is_file())
        with service.away(how, seconds):
            pass

    return trouble


def row(server: str, how: str, when: str, seen: Seen, calm: Seen) -> str:
    """One line of the table: what differs from the trial that nothing disturbed."""
    lost = sum(point not in seen.points for point in calm.points)
    doubled = sum(times > 1 for times in seen.points.values())
    versions = "equal" if seen.versions == calm.versions else f"{len(seen.versions)} of {len(calm.versions)}"
    if len(set(seen.versions)) < len(seen.versions):
        versions += ", doubled"
    wrong = len(set(seen.versions) - set(calm.versions))
    ended = {0: "completed", -1: "hung"}.get(seen.status, f"ended with {seen.status}; again: {again(seen)}")
    cells = [server, how, when, ended, f"{seen.seconds:.0f}", f"{lost} of {len(calm.points)}", str(doubled)]
    cells += [
        f"{seen.pages} of {calm.pages}",
        f"{seen.checkpoints} of {calm.checkpoints}",
        versions,
        str(wrong),
        str(seen.running),
    ]
    return "| " + " | ".join(cells) + " |"


def again(seen: Seen) -> str:
    return seen.said.rpartition("--- again: ")[2].partition("\n")[0] or "–"


HEAD = (
    "| server | what | when | run | s | points lost | points doubled | pages | checkpoints | versions | wrong | left"
    " RUNNING |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="how long a server is away (default: %(default)s)")
    parser.add_argument(
        "--only",
        default="",
        help="servers to try, such as postgres or postgres/killed, separated by commas (default: all)",
    )
    parser.add_argument("--logs", type=Path, help="keep what the runs said in this folder")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the table goes (default: %(default)s)")
    given = parser.parse_args()
    if why := stack.missing() or hosts.missing():
        parser.exit(1, f"error: {why}\n")
    wanted = [name for name in given.only.split(",") if name] or [name for name, _ in TROUBLES]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        project = make_project(folder / "team/project")
        lengthen(project)
        (folder / "servers").mkdir()
        with stack.running(folder / "servers") as servers:
            (host,) = make_hosts(folder / "hosts", servers.env(), "a")
            prepare(host, servers.publish(project, "project"))
            calm = trial(servers, host, "calm", lambda _project: None)
            keep(given.logs, "calm", calm)
            if calm.status or not calm.points or not calm.versions:
                parser.exit(
                    1, f"error: the run that nothing disturbed ended with {calm.status}:\n{calm.said[-4000:]}\n"
                )
            print(HEAD)
            rows.append(row("–", "–", "–", calm, calm))
            print(rows[-1], flush=True)
            for server, how in TROUBLES:
                if not {server, f"{server}/{how}"} & set(wanted):
                    continue
                for when in WHEN:
                    title = f"{server}-{how}-{when}".replace(" ", "-")
                    seen = trial(servers, host, title, make_trouble(servers, server, how, when, given.seconds))
                    keep(given.logs, title, seen)
                    rows.append(row(server, how, when, seen, calm))
                    print(rows[-1], flush=True)
    given.out.write_text(page(rows, given.seconds), encoding="utf-8")


def lengthen(project: Path) -> None:
    """A training that is long enough to be met in the middle."""
    yaml = YAML()
    table = yaml.load((project / "params.yaml").read_text(encoding="utf-8"))
    table["grpo"][ROW] |= {"steps": STEPS, "save_steps": SAVE_STEPS, "controls_every": SAVE_STEPS}
    with (project / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(table, file)
    commit(project, "a longer training")


def keep(folder: Path | None, name: str, seen: Seen) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.log").write_text(seen.said, encoding="utf-8")
        (folder / f"{name}.json").write_text(
            json.dumps({"status": seen.status, "versions": seen.versions}), encoding="utf-8"
        )


def page(rows: Sequence[str], seconds: float) -> str:
    return f"""# What a run keeps when a server goes

`make outages`: one host, MLflow with basic auth on PostgreSQL and artefacts through it to S3,
Prefect on PostgreSQL, the DVC remote in S3; each a process on loopback. A training of {STEPS} steps,
its evaluation and the registration of both; one server is away for {seconds:g} s. Points, pages,
checkpoints and versions are compared with the first line, which nothing disturbed; versions are
compared by content.

{HEAD}
{chr(10).join(rows)}
"""


if __name__ == "__main__":
    main()
