"""The ``vidbridge`` command: its commands put together, and the output of errors.

Nothing heavy is imported before a command needs it: help answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from io import TextIOWrapper
from typing import Any, NoReturn

import typer

from flows.cli import ablate, data, deploy, doctor, evaluate, maintain, recipes, registry, run, serve
from flows.cli.app import FAILURE, Commands, global_options
from stages.errors import fault_of

#: In the order in which help lists them.
COMMANDS: Mapping[str, Callable[..., None]] = {
    "init": recipes.init,
    "run": run.run,
    "plan": run.plan,
    "node": run.node,
    "doctor": doctor.doctor,
    "register": registry.register,
    "promote": registry.promote,
    "rollback": registry.rollback,
    "history": registry.history,
    "compare": registry.compare,
    "explain": registry.explain,
    "predict": serve.predict,
    "score": evaluate.score,
    "evaluate": evaluate.evaluate,
    "serve": serve.serve,
    "export": serve.export,
    "report": serve.report,
    "ablate": ablate.ablate,
    "gc": maintain.collect_garbage,
    "accept": maintain.accept,
    "deploy": deploy.deploy,
    "ui": deploy.ui,
}
#: A group's help, and its commands.
GROUPS: Mapping[str, tuple[str, Mapping[str, Callable[..., None]]]] = {
    "data": (
        "Check, cut, browse, export and remove videos and samples. Example: vidbridge data check /path/to/videos",
        {"check": data.check, "cut": data.cut, "browse": data.browse, "export": data.export, "remove": data.remove},
    ),
    "recipe": (
        "List, show and use recipes for params.yaml. Example: vidbridge recipe use smoke",
        {"list": recipes.list_all, "show": recipes.show, "diff": recipes.diff, "use": recipes.use},
    ),
    "scratch": (
        "List or delete the state of interrupted trainings. Example: vidbridge scratch status",
        {"status": maintain.scratch_status, "clean": maintain.scratch_clean},
    ),
}

PIPE_CLOSED = 141


def _group(help: str, commands: Mapping[str, Callable[..., None]], **more: Any) -> typer.Typer:
    group = typer.Typer(help=help, no_args_is_help=True, **more)
    for name, command in commands.items():
        group.command(name)(command)
    return group


app = _group(
    "From videos to a registered, promoted video language model. Start with: vidbridge doctor, then vidbridge run",
    COMMANDS,
    name="vidbridge",
    cls=Commands,
    callback=global_options,
    rich_markup_mode=None,
    # Wide terminals are used.
    context_settings={"max_content_width": 120},
    pretty_exceptions_enable=False,
)
for _name, (_help, _commands) in GROUPS.items():
    app.add_typer(_group(_help, _commands), name=_name)


def main() -> None:
    """Entry point. Prints an error that the user can act upon as one message and ends with its
    status, never a traceback. A defect keeps its traceback.
    """
    from stages.errors import VidbridgeError
    from stages.runtime.plain import fit, guard_logs

    for stream in (sys.stdout, sys.stderr):
        # Characters that an ASCII terminal cannot show are escaped, as `\\u2013`, rather than
        # ending the command.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    guard_logs()
    try:
        try:
            app()
        finally:
            # Here, where its error is reported: the interpreter's own flush at the end only
            # complains.
            sys.stdout.flush()
    except VidbridgeError as error:
        _end("\nerror: ".join(fit(one) for one in error.each()), error.status)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(PIPE_CLOSED)
    except OSError as error:
        if (fault := fault_of(error)) is None:
            _defect()
        _end(fit(fault), FAILURE)
    except Exception as error:
        from stages.tracking.runs.foreign import sentence_of

        if (said := sentence_of(error)) is None:
            _defect()
        _end(fit(said), FAILURE)


def _end(message: str, status: int) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(status)


def _defect() -> NoReturn:
    """Print the traceback of a defect, and where to report it."""
    import traceback

    from stages.runtime.plain import fit

    sys.stderr.write(fit(traceback.format_exc()))
    sys.stderr.write(
        "this is a defect of vidbridge: please report it with the lines above and what `vidbridge --version` says\n"
    )
    sys.exit(FAILURE)


if __name__ == "__main__":
    main()
