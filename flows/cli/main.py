"""The ``vidbridge`` command. Nothing heavy is imported before a command needs it: help answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import typer.core

from flows.cli.command import INTERRUPTED
from flows.errors import UsageError
from stages.errors import remedy_of

if TYPE_CHECKING:
    from stages.tracking.session import Session


class _Commands(typer.core.TyperGroup):
    """Ctrl-C ends any command with a sentence and the status that shells expect; typer says nothing, or "Aborted!"."""

    def make_context(self, *arguments: Any, **named: Any) -> Any:
        with _interruptible():
            return super().make_context(*arguments, **named)

    def invoke(self, ctx: Any) -> Any:
        with _interruptible():
            return super().invoke(ctx)


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="vidbridge",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    # Wide terminals are used: at the usual 80 columns every line of the list of commands would end in dots.
    context_settings={"max_content_width": 120},
    pretty_exceptions_enable=False,
)
recipe_app = typer.Typer(help="Choose what params.yaml says. Example: vidbridge recipe use smoke", no_args_is_help=True)
scratch_app = typer.Typer(
    help="The state from which interrupted training resumes. Example: vidbridge scratch status", no_args_is_help=True
)
data_app = typer.Typer(help="Look at videos and samples. Example: vidbridge data check /path/to/videos", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(recipe_app, name="recipe")
app.add_typer(scratch_app, name="scratch")

#: Exit statuses: as shells and make expect them.
FAILURE, PIPE_CLOSED = 1, 141

BenchmarkOption = Annotated[
    str, typer.Option(help="A public benchmark, such as video-mme; an unknown name is answered with all of them.")
]
AnnotationsOption = Annotated[
    str,
    typer.Option(
        help="Its annotation file as published (JSON, JSON Lines, Parquet), its folder, or hf://datasets/OWNER/NAME@COMMIT on the hub."
    ),
]

VersionArgument = Annotated[str, typer.Argument(help="A version's number, champion, or models:/NAME@champion, models:/NAME/7.")]
VersionOption = Annotated[str | None, typer.Option(help="A version's number, or champion; champion when left out.")]
ModelOption = Annotated[
    str | None, typer.Option(help="models:/NAME@champion or models:/NAME/7, instead of --version: of any registered model.")
]


def _say_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"vidbridge {version('vidbridge')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """From videos to a registered, promoted video language model. Start with: vidbridge doctor, then vidbridge run"""


def _root() -> Path:
    from flows.processes.environment import enter
    from stages.runtime.project import project_root

    root = project_root()
    enter(root)
    return root


def _session() -> Session:
    """The project, entered."""
    root = _root()
    from stages.tracking.session import Session

    return Session(root)


def _reader() -> Session:
    """The project, or outside of one the cache folder: for commands that ask the registry and nothing else of a project."""
    from flows.cli.outside import reader

    return reader()


@app.command()
def run(
    stage: Annotated[str, typer.Argument(help="Stage to bring up to date, with all it needs.")] = "summary",
    dry_run: Annotated[bool, typer.Option("--dry-run", "--plan", help="Only show what would run, and why.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a run that trains a pretrained model.")] = False,
    resume_across_code: Annotated[
        bool,
        typer.Option("--resume-across-code", help="Resume training from a checkpoint although its code changed since (tagged)."),
    ] = False,
    push: Annotated[
        bool,
        typer.Option(
            "--push", help="Hand DVC's run cache and the branch with dvc.lock on, for other hosts (as scheduled runs do)."
        ),
    ] = False,
) -> None:
    """Run what is out of date, register it, print the scores. What the DVC remote holds is fetched instead.

    Example: change grpo.general.learning_rate in params.yaml, then `vidbridge run`: that stage and what follows it run again, only.
    Ctrl-C ends it at once; the next `vidbridge run` resumes training at its last checkpoint.
    """
    if resume_across_code:
        os.environ["VIDBRIDGE_RESUME_ACROSS_CODE"] = "1"
    try:
        # The import too: it takes a second, in which a person may think better of it.
        from flows.cli import run as running

        running.run(_root(), stage, dry_run=dry_run, ask=not yes, push=push)
    except KeyboardInterrupt:
        # Here and not in `main`: typer would say "Aborted!" before it got there.
        typer.echo("interrupted; every stage has been ended. Go on where it stopped: vidbridge run", err=True)
        raise typer.Exit(INTERRUPTED) from None


@app.command()
def plan(
    stage: Annotated[str, typer.Argument(help="Stage to plan for.")] = "summary",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show what would run or be fetched, why, and at what cost.

    Time and GPU hours come from earlier runs of a stage (measured; scaled where only its steps differ), else from rates that you
    declare in .vidbridge/rates.yaml, else they are unknown. Questions to judges and writer are counted, as upper bounds.

    Example: vidbridge plan grpo@bridge
    """
    from flows.cli import run as running

    running.run(_root(), stage, dry_run=True, ask=False, as_json=as_json)


@app.command()
def doctor() -> None:
    """Say what this machine has, and what to do about the rest.

    Looks also for what an upgrade from 0.1 leaves to be made again. Example: vidbridge doctor
    """
    from flows.cli import doctor as checks
    from flows.processes.environment import project_or_none

    if not checks.report(project_or_none()):
        raise typer.Exit(FAILURE)


@app.command()
def register() -> None:
    """Make each checkpoint in dvc.lock a model version.

    Only after a plain `dvc repro`; `vidbridge run` does it itself.

    Example: dvc repro && vidbridge register
    """
    session = _session()
    from flows.console import show
    from flows.console.registry import register_table
    from flows.processes.locks import only_run
    from flows.repro import registered
    from stages.tracking.registry.register import register as reconcile

    with only_run(session.root):  # a run is just writing the lock that is read here
        report = reconcile(session)
        registered.write(session, report)
    show.console().print(register_table(report))


@app.command()
def promote(
    version: Annotated[str | None, typer.Argument(help="Version to promote; the newest candidate when left out.")] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")] = "",
    author: Annotated[str | None, typer.Option(help="Who decides; git's user.name and user.email when left out.")] = None,
    new_evaluation: Annotated[
        bool,
        typer.Option(
            "--new-evaluation", help="Do not score the champion again when the evaluation changed: compare with the baselines only."
        ),
    ] = False,
) -> None:
    """Let the gate compare a candidate with the champion.

    When it is better, the alias `champion` moves to it.

    Example: vidbridge promote, or vidbridge promote 7 --reason "better on captions"
    """
    from flows.cli import registry

    if not registry.promote(_session(), version, reason, author, new_evaluation):
        raise typer.Exit(FAILURE)


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")] = "",
    author: Annotated[str | None, typer.Option(help="Who decides; git's user.name and user.email when left out.")] = None,
) -> None:
    """Give the alias back to the champion before this one. Example: vidbridge rollback --reason "fails on night scenes\""""
    from flows.cli import registry

    registry.rollback(_session(), reason, author)


@app.command()
def history(
    model: Annotated[
        str | None, typer.Option(help="A registered model; the project's own, or VIDBRIDGE_MODEL outside of one, when left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show every promotion, refusal and rollback.

    Each with its author and reason. Needs no project where MLFLOW_TRACKING_URI is set. Example: vidbridge history
    """
    session = _reader()
    from flows.cli import registry

    registry.history(session, model, as_json)


@app.command()
def compare(
    after: Annotated[str, typer.Argument(help="A version's number, an alias, or models:/NAME/7.")] = "candidate",
    before: Annotated[str, typer.Argument(help="The version it is held against.")] = "champion",
) -> None:
    """Compare two versions sample by sample.

    Differences with intervals, and whether chance could have made them. Outside of a project name the model: models:/NAME/7 5

    Example: vidbridge compare 7 5
    """
    session = _reader()
    from flows.cli import registry

    registry.compare(session, after, before)


@app.command()
def explain(version: VersionArgument = "champion") -> None:
    """Show where a version comes from, and how it scores.

    Its commit, data, parameters, scores, ancestors and verdict. Needs no project where MLFLOW_TRACKING_URI is set.

    Example: vidbridge explain champion, or vidbridge explain models:/vidbridge-tiny/7
    """
    session = _reader()
    from flows.cli import registry

    registry.explain(session, version)


@app.command()
def predict(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    question: Annotated[str, typer.Option("--question", "-q", help="What to ask about it.")],
    version: Annotated[
        str | None, typer.Option(help="A version's number, champion, or models:/NAME@champion; champion when left out.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="models:/NAME@champion, models:/NAME/7, or a folder that `vidbridge export` wrote; needs no project."),
    ] = None,
) -> None:
    """Ask a registered model about a video.

    Outside of a project MLFLOW_TRACKING_URI and VIDBRIDGE_DVC_REMOTE (a URL) say where it comes from.

    Example: vidbridge predict clip.mp4 --question "What happens first?"
    """
    from flows.cli import serve as serving

    uri = _version_of(version, model if model is not None and model.startswith("models:") else None)
    folder = Path(model) if model is not None and not model.startswith("models:") else None
    if folder is not None and version is not None:
        raise UsageError("--version, --model: contradict each other; give one of them")
    serving.predict(video.expanduser().resolve(), question, uri, _given(folder))


@app.command()
def score(
    benchmark: BenchmarkOption,
    annotations: AnnotationsOption,
    predictions: Annotated[Path, typer.Option(help="JSON Lines, a question each; what is accepted is said above.")],
    out: Annotated[Path | None, typer.Option(help="A JSON file to write everything into.")] = None,
    baselines: Annotated[bool, typer.Option(help="Score random, constant and empty replies too; costs judge calls.")] = True,
    against: Annotated[
        Path | None, typer.Option(help="A second file of predictions: the first is compared with it, question by question.")
    ] = None,
) -> None:
    """Score anyone's predictions on a benchmark, without a model.

    Two readings: `strict`, and `compat` as public harnesses print it.

    A prediction is {"id": "001-1", "reply": "what the model wrote, reasoning and all"}, one a line; other keys are left alone. The
    id is Video-MME's question_id; action_antonym/0 (file and row) for MVBench; DREAM-1K's idx as text; camera/VIDEO for VDC;
    CaReBench's video; sample_id for our own tests. Judged benchmarks use `judge` of params.yaml.

    Example: vidbridge score --benchmark video-mme --annotations ~/Video-MME --predictions replies.jsonl --out scores.json
    """
    from flows.cli import evaluate as evaluating

    # Before the project's folder becomes the working directory.
    asked, said = evaluating.annotations_at(annotations, benchmark), predictions.expanduser().resolve()
    written, other = _given(out), _given(against)
    from flows.processes.environment import project_or_none

    evaluating.score(project_or_none(), benchmark, asked, said, written, baselines=baselines, against=other)


@app.command()
def evaluate(
    benchmark: BenchmarkOption,
    annotations: AnnotationsOption,
    out: Annotated[Path, typer.Option(help="Folder for replies, scores and table; call again with the same one to go on.")],
    videos: Annotated[
        Path | None, typer.Option(help="Folder with its videos, at any depth; for our own two benchmarks those of ingest.source.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="models:/NAME@champion, models:/NAME/3, champion, a version's number, a Hugging Face folder, or a hub id with --revision."
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Commit of a hub id; for an endpoint, which weights it serves (kept with the scores).")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible address such as http://127.0.0.1:8000/v1; its key: VIDBRIDGE_ENDPOINT_KEY."),
    ] = None,
    endpoint_model: Annotated[str | None, typer.Option(help="The model, as the endpoint names it.")] = None,
    endpoint_video: Annotated[
        str, typer.Option(help="How frames are sent: jpeg (image_url, one a frame) or mp4 (video_url, exactly these frames).")
    ] = "jpeg",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Questions at once; evaluation.batch_size when left out.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of a reply; the model's own, else evaluation.max_new_tokens, when left out.")
    ] = None,
    controls: Annotated[
        int | None,
        typer.Option(
            min=1, help="Ask only so many questions, drawn by seed, with a black and a shuffled video too; all when left out."
        ),
    ] = None,
    no_controls: Annotated[bool, typer.Option("--no-controls", help="Ask none with a black or a shuffled video.")] = False,
    baselines: Annotated[bool, typer.Option(help="Score random, constant and empty replies too; costs judge calls.")] = True,
    against: Annotated[Path | None, typer.Option(help="Predictions to compare with, question by question.")] = None,
) -> None:
    """Put a model through a benchmark and score its replies.

    Every question is asked, replies are scored as `vidbridge score` does it, and all is logged to MLflow.

    Frames and prompts are the benchmark's; a video is decoded once, and goes through the vision tower once, for all questions about it.
    Every reply is on disk as it comes: after Ctrl-C or kill -9 the same call goes on. Videos that are missing or unreadable are listed,
    and the result is then marked partial. Beside the score stand those of the same model on black and on shuffled videos.

    Example: vidbridge evaluate --model champion --benchmark dream-1k --annotations ~/DREAM-1K/json --videos ~/DREAM-1K --out dream

    Example: vidbridge evaluate --endpoint http://127.0.0.1:8000/v1 --endpoint-model my-model --benchmark video-mme
    --annotations ~/Video-MME --videos ~/Video-MME/data --out mme --controls 200
    """
    from flows.cli import evaluate as evaluating
    from stages.tools.suites.evaluate import Order

    if no_controls and controls is not None:
        raise UsageError("--controls, --no-controls: contradict each other; give one of them")
    order = Order(
        benchmark=benchmark,
        annotations=evaluating.annotations_at(annotations, benchmark),
        videos=_given(videos),
        out=out.expanduser().resolve(),
        controls=0 if no_controls else controls,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    evaluating.evaluate(
        _reader(),
        order,
        model=model,
        revision=revision,
        endpoint=endpoint,
        endpoint_model=endpoint_model,
        form=endpoint_video,
        baselines=baselines,
        against=_given(against),
    )


def _version_of(version: str | None, model: str | None) -> str:
    """The one version that ``--version`` and ``--model`` name; champion where neither does."""
    if version is not None and model is not None:
        raise UsageError("--version, --model: contradict each other; give one of them")
    if model is not None and not model.startswith("models:"):
        raise UsageError(f"--model: {model!r} is no version; write models:/NAME@champion or models:/NAME/3, or --version {model}")
    return version or model or "champion"


def _given(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().resolve()


@app.command()
def serve(
    version: VersionOption = None,
    model: ModelOption = None,
    videos: Annotated[Path | None, typer.Option(help="Folder whose videos a request may name; none when left out.")] = None,
    host: Annotated[str, typer.Option(help="Address or name to listen on, IPv4 or IPv6.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any free one.")] = 0,
) -> None:
    """Answer questions about videos over HTTP until Ctrl-C.

    Example: vidbridge serve --videos data/corpus/videos

    Only this machine can ask; another --host needs VIDBRIDGE_SERVE_KEY, which clients send as a bearer token. Outside of a project
    MLFLOW_TRACKING_URI and VIDBRIDGE_DVC_REMOTE (a URL) say where the model comes from; it is kept in VIDBRIDGE_CACHE.

    Example: vidbridge serve --model models:/vidbridge-tiny@champion
    """
    asked, session = _version_of(version, model), _reader()
    from flows.cli import serve as serving

    serving.serve(session, asked, videos.resolve() if videos else None, host, port)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Folder to write; new or empty.")],
    version: VersionOption = None,
    model: ModelOption = None,
) -> None:
    """Write a version as a Hugging Face folder with a model card.

    For vllm serve, or the hub. Outside of a project MLFLOW_TRACKING_URI and VIDBRIDGE_DVC_REMOTE (a URL) say where it comes from.

    Example: vidbridge export ~/model, or vidbridge export ~/model --model models:/vidbridge-tiny/7
    """
    asked, session = _version_of(version, model), _reader()
    from flows.cli import serve as serving

    serving.export(session, asked, folder.resolve())


@app.command()
def report(out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html")) -> None:
    """Write one HTML page of scores, curves, versions and costs.

    It opens offline. Example: vidbridge report --out results.html
    """
    from flows.cli import run as running

    running.report(_root(), out.resolve())


@app.command()
def ablate(
    jobs: Annotated[int | None, typer.Option(min=1, help="Seeds at a time; a core each (one for a pretrained model).")] = None,
    out: Annotated[Path | None, typer.Option(help="A folder to copy the table, the figure and the figures behind them to.")] = None,
    table: Annotated[bool, typer.Option("--table", help="Run nothing; show what has run so far.")] = False,
) -> None:
    """Run the grid of `ablation` in params.yaml, all seeds of it.

    Prints one table and writes one figure, both with intervals.

    Data, base and start are made once a seed. Ctrl-C ends it; the next call goes on where it stopped. Example: vidbridge ablate --jobs 2
    """
    folder = None if out is None else out.expanduser().resolve()
    try:
        from flows.cli import ablate as ablation

        ablation.ablate(_root(), jobs, folder, table_only=table)
    except KeyboardInterrupt:
        typer.echo("interrupted; every stage has been ended. Go on where it stopped: vidbridge ablate", err=True)
        raise typer.Exit(INTERRUPTED) from None


@app.command("gc")
def collect_garbage(
    remote: Annotated[bool, typer.Option("--remote", help="In the DVC remote too, what is proven this project's own.")] = False,
    versions: Annotated[
        bool,
        typer.Option(
            "--versions",
            help="Give up the weights of versions that nothing needs (with --remote, where there is one); tags and lineage stay.",
        ),
    ] = False,
    keep_days: Annotated[float, typer.Option(min=0, help="Nothing younger is touched.")] = 7.0,
    also: Annotated[
        list[Path] | None,
        typer.Option(help="Another project that uses this cache or remote, and needs what it names; may be repeated."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Free it; without this it is only shown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Free what nothing needs any more; without --yes only show it.

    Needed is what the work tree, any branch or tag (runs/* included), an alias (champion, candidate), or an earlier champion in the
    ledger names: rollback stays possible. What else lies in DVC's cache is freed, and old scratch, models put together, journals, frames
    and clones of scheduled runs. A registered version keeps its last copy unless --versions gives it up; `explain` knows it all the same.

    A shared cache and a remote: only content that this project's history names is freed, and only when every branch of the origin is
    known here. MLflow's runs and pages are never touched. Example: vidbridge gc --remote --versions --yes
    """
    from flows.housekeeping import gc

    order = gc.Order(remote, versions, keep_days, tuple(path.expanduser().resolve() for path in also or ()))
    gc.gc(_root(), order, yes=yes, as_json=as_json)


@app.command()
def accept(
    stage: Annotated[str, typer.Argument(help="Stage whose change does not matter.")],
    why: Annotated[str, typer.Option("--why", help="The reason, kept in accepted.jsonl.")],
) -> None:
    """Declare that a change of a stage does not change its result.

    Of its code or its parameters: it need not run again then.

    Example: vidbridge accept sft@cold-start --why "only a comment moved"
    """
    from flows.cli import maintain

    maintain.accept(_root(), stage, why)


@app.command()
def deploy(
    cron: Annotated[str | None, typer.Option(help="When to look for new videos; infra/prefect.yaml says when left out.")] = None,
    timezone: Annotated[
        str | None, typer.Option(help="Time zone of the schedule, such as Europe/Berlin; UTC when left out.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="Folder of videos to watch, as the worker sees it; overrides ingest.source.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe to run; what params.yaml says when left out.")] = None,
    branch: Annotated[str | None, typer.Option(help="Branch that is run; the one checked out when left out.")] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the deployment; another name makes another one. infra/prefect.yaml says when left out."),
    ] = None,
    repository: Annotated[
        str | None, typer.Option(help="What a worker elsewhere clones: a URL; the project of the worker when left out.")
    ] = None,
    directory: Annotated[str | None, typer.Option(help="The project's folder inside --repository; its top when left out.")] = None,
    pool: Annotated[str | None, typer.Option(help="Work pool whose workers run it; vidbridge when left out.")] = None,
    worker: Annotated[bool, typer.Option(help="Stay, and run what falls due.")] = True,
    port: Annotated[int, typer.Option(help="Port of Prefect's server when none runs yet; 0: any free one.")] = 0,
) -> None:
    """Create a scheduled deployment, and serve it until Ctrl-C.

    It is described in infra/prefect.yaml.

    Each deployment has a clone of its own on the worker. A schedule that was paused stays so; a work pool that is there stays as it is.

    Example: vidbridge deploy --cron "0 3 * * *" --timezone Europe/Berlin --source /data/videos

    Example, for workers elsewhere: vidbridge deploy --repository https://git.example.org/team/videos.git --branch main --pool gpus
    --name nightly-gpus --no-worker, and there: prefect worker start --pool gpus --type process
    """
    root = _root()
    from flows.deployments import deploy as deploying

    order, notes = deploying.order_of(
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


@app.command()
def ui(
    prefect_port: Annotated[int, typer.Option(help="Port of Prefect's pages; 0: any free one.")] = 0,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow's pages; 0: any free one.")] = 0,
) -> None:
    """Serve Prefect's and MLflow's pages here until Ctrl-C.

    They ask for a password, which is printed.

    Example: vidbridge ui --mlflow-port 5000
    """
    from flows.cli import ui as pages

    pages.ui(_root(), prefect_port, mlflow_port)


@data_app.command("check")
def data_check(
    folder: Annotated[Path, typer.Argument(help="Folder with videos and their annotations.")],
    format: Annotated[
        str | None,
        typer.Option(
            help="How annotations are written, such as coin; ingest.format when left out. An unknown name is answered with all."
        ),
    ] = None,
    annotations: Annotated[
        str | None, typer.Option(help="The annotation file in it; the format's usual one when left out.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="List everything that is set aside.")] = False,
) -> None:
    """Show what ingest would accept and set aside, and why.

    Nothing is written; ends with 1 when nothing would be accepted. Example: vidbridge data check ~/coin --format coin
    """
    from flows.cli import data
    from flows.processes.environment import project_or_none

    if not data.check(project_or_none(), folder.expanduser().resolve(), format, annotations, every=every):
        raise typer.Exit(FAILURE)


@data_app.command("browse")
def data_browse(
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("data.html"),
    samples: Annotated[int, typer.Option(min=1, help="Samples of each task and split that it shows.")] = 8,
) -> None:
    """Write one HTML page of samples, rejects and the data card.

    Samples are shown as film strips. Example: vidbridge data browse
    """
    from flows.cli import data

    data.browse(_root(), out.resolve(), samples)


@data_app.command("export")
def data_export(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    kind: Annotated[
        str, typer.Option("--as", help="mp4 (videos, frame by frame), trl (JSONL and videos) or datasets (Parquet).")
    ] = "trl",
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given again.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Only this split; may be given again.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many of each task and split.")] = None,
) -> None:
    """Write samples for other tools. A second call makes only the videos that are missing.

    Example: vidbridge data export proxies --as datasets --task dark_event_infer --task mix_vid_qa
    """
    from flows.cli import data

    data.export(_root(), out.resolve(), kind, task or [], split or [], limit)


@data_app.command("remove")
def data_remove(
    videos: Annotated[
        list[str], typer.Argument(help="Each as the annotations name it, as a path, by its clip's id, or by its SHA-256.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it; without this it is only shown.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take videos back that were removed by mistake.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Take videos out of the data; say what has seen them.

    Which clips, samples and registered versions saw it, and what has to run again. With --yes it is written to `ingest.exclude` in
    params.yaml: ingest sets it aside (removed-on-request), with every copy of the same bytes. Versions that learned from it are
    tagged, and the gate takes none of them, on any machine. A version whose data cannot be read counts as unknown, never as clean.

    Then: vidbridge run, vidbridge promote, and vidbridge gc, which frees the copies. Example: vidbridge data remove videos/a.mp4 --yes
    """
    from flows.housekeeping import removal

    removal.remove(_root(), videos, yes=yes, undo=undo, as_json=as_json)


@recipe_app.command("list")
def recipe_list() -> None:
    """List the recipes. Example: vidbridge recipe list"""
    from flows import recipes
    from flows.console import show
    from flows.processes.environment import project_or_none
    from stages.runtime.plain import one_line

    for one in recipes.recipes(project_or_none()):
        show.say(f"{'*' if one.in_use else ' '} {one_line(one.name):<22} {one_line(one.about)}")


@recipe_app.command("show")
def recipe_show(name: Annotated[str, typer.Argument(help="Name of a recipe.")]) -> None:
    """Print a recipe. Example: vidbridge recipe show smoke"""
    from flows import recipes
    from flows.console import show
    from flows.processes.environment import project_or_none
    from stages.runtime.bounded_yaml import read_text

    show.say(read_text(recipes.recipe(project_or_none(), name).path), end="")


@recipe_app.command("diff")
def recipe_diff(name: Annotated[str, typer.Argument(help="Name of a recipe.")]) -> None:
    """Show what using a recipe would change in params.yaml. Example: vidbridge recipe diff smoke"""
    from flows import recipes
    from flows.console import show

    show.say(recipes.difference(_root(), name).rstrip("\n") or f"params.yaml is {name} already")


@recipe_app.command("use")
def recipe_use(
    name: Annotated[str, typer.Argument(help="Name of a recipe.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite edits of params.yaml that no commit keeps.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Its rows, tasks and losses in small: tiny model, generated corpus, a few steps each.")
    ] = False,
) -> None:
    """Copy a recipe over params.yaml. Example: vidbridge recipe use videocap-r1 --smoke && vidbridge run"""
    from flows import recipes
    from flows.console import show

    params = recipes.use(_root(), name, force, smoke=smoke)
    show.say(
        f"params.yaml is now {params.recipe} (seed {params.seed}); see what changed: git diff params.yaml; then: vidbridge run"
    )


@scratch_app.command("status")
def scratch_status() -> None:
    """List interrupted trainings and the space they take. Example: vidbridge scratch status"""
    from flows.cli import maintain

    maintain.scratch_status(_root())


@scratch_app.command("clean")
def scratch_clean(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete the state of interrupted trainings.

    They then start at step 0. Example: vidbridge scratch clean --yes
    """
    from flows.cli import maintain

    maintain.scratch_clean(_root(), ask=not yes)


def main() -> None:
    """Entry point: an error that a person can act upon is one message and a status, never a traceback. A defect keeps its traceback."""
    from stages.errors import VidbridgeError
    from stages.runtime.plain import fit, guard_logs

    for stream in (sys.stdout, sys.stderr):
        # What an ASCII terminal cannot show is written out, as `\\u2013`, rather than ending the command.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    guard_logs()
    try:
        try:
            app()
        finally:
            # Here, where an error of it is told: the interpreter's own flush at the end only complains.
            sys.stdout.flush()
    except VidbridgeError as error:
        _end(fit(error), error.status)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(PIPE_CLOSED)
    except OSError as error:
        if (remedy := remedy_of(error)) is None:
            _defect()
        _end(fit(remedy), FAILURE)
    except Exception as error:
        from stages.tracking.runs.foreign import sentence_of

        if (said := sentence_of(error)) is None:
            _defect()
        _end(fit(said), FAILURE)


def _end(message: str, status: int) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(status)


def _defect() -> NoReturn:
    """Show the traceback of what should not have happened, and where it goes."""
    import traceback

    from stages.runtime.plain import fit

    sys.stderr.write(fit(traceback.format_exc()))
    sys.stderr.write("this is a defect of vidbridge: please report it with the lines above and what `vidbridge --version` says\n")
    sys.exit(FAILURE)


if __name__ == "__main__":
    main()
