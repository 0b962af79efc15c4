"""Tasks of a project's own: loading of the modules that ``tasks.module`` of ``params.yaml`` names.

A module is code of the project's owner, as ``dvc.yaml`` is, and every command that reads
``params.yaml`` runs it. So it is read from the folder ``tasks/`` of the project alone: no name in a
registered model, a checkpoint, a bucket or a request leads here. DVC watches that folder, and so
everything that a module imports from it.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Annotated, Any, NamedTuple, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ValidationError

from stages.domain.core.records import TASK_NAME_PATTERN, Record
from stages.domain.tasks import TASK_NAMES, own_tasks, use_own_tasks
from stages.domain.tasks.task import AnswerForm, AnswerKind, BaseSettings, Marking, Part, Task, TraceBrief
from stages.params.guards import guarded
from stages.params.types import ParamsError, Table
from stages.runtime import paths
from stages.runtime.code_digest import code_digest
from stages.runtime.plain import one_line

PACKAGE = paths.OWN_TASKS
_MODULE = re.compile(rf"{PACKAGE}/([A-Za-z_][A-Za-z0-9_]*/)*[A-Za-z_][A-Za-z0-9_]*\.py")
_ANSWERS: tuple[AnswerKind, ...] = get_args(AnswerKind)


def _listed(value: Any) -> Any:
    """Read one module as a list of one."""
    modules = (value,) if isinstance(value, str) else value
    if modules is not None and not (modules and isinstance(modules, list | tuple)):
        raise ValueError(f"not a module; write {PACKAGE}/NAME.py, a list of such files, or null")
    return modules


def _below(value: str) -> str:
    if _MODULE.fullmatch(value) is None:
        raise ValueError(
            f"lies outside of the project's folder {PACKAGE}/, which DVC watches; move it there, and write"
            f" {PACKAGE}/NAME.py"
        )
    return value


Module = Annotated[str, AfterValidator(_below)]


class TasksParams(Table):
    """Tasks of the project's own."""

    #: Python files in the folder ``tasks/`` of the project that define them, one or a list; null:
    #: there are none. Every command that reads this file runs them. DVC watches the folder.
    module: Annotated[tuple[Module, ...] | None, BeforeValidator(_listed)]


class _Named(BaseModel):
    """The part of ``params.yaml`` that is read first: without it, no task's name can be checked."""

    tasks: TasksParams


def own_modules(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Modules that the parameters name; none where their table is not valid, of which the check of
    all parameters tells beside the other faults."""
    try:
        return _Named.model_validate(raw).tasks.module or ()
    except ValidationError:
        return ()


def names_own_tasks(raw: object) -> bool:
    """True if parameters name modules, which this does not read."""
    tasks = raw.get("tasks") if isinstance(raw, Mapping) else None
    return isinstance(tasks, Mapping) and tasks.get("module") is not None


class _Loaded(NamedTuple):
    root: Path
    modules: tuple[str, ...]
    files: tuple[tuple[str, int, int], ...]
    tasks: tuple[Task[Any], ...]


_loaded: _Loaded | None = None


def load_own_tasks(root: Path, modules: Sequence[str]) -> None:
    """Make the tasks of these modules, and no others, the project's own in this process.

    Modules that are loaded already run again only after a change of a file in the folder.

    Args:
        root: the project's folder.
        modules: their paths below it, as :class:`TasksParams` allows them.

    Raises:
        ParamsError: a module does not exist, is listed twice or cannot be imported; it defines no
            task, or one that is not complete, or has the name of another.
    """
    global _loaded
    if not modules:
        use_own_tasks((), None)
        return
    root, wanted = root.absolute(), tuple(modules)
    files = _files(root / PACKAGE)
    if _loaded is None or _loaded[:3] != (root, wanted, files):
        _forget()
        sys.meta_path.insert(0, _Finder(root / PACKAGE))
        _loaded = _Loaded(root, wanted, files, _tasks_of(root, wanted))
    use_own_tasks(_loaded.tasks, partial(load_own_tasks, root, wanted))


def _tasks_of(root: Path, modules: Sequence[str]) -> tuple[Task[Any], ...]:
    if twice := sorted({path for path in modules if modules.count(path) > 1}):
        raise ParamsError("tasks.module", f"{twice[0]!r} is listed twice", "remove one of them")
    places: dict[str, str] = dict.fromkeys(TASK_NAMES, "vidbridge")
    tasks: list[Task[Any]] = []
    for path in modules:
        for task in _tasks_in(root, path):
            if (place := places.get(task.name)) is not None:
                raise ParamsError(
                    "tasks.module",
                    f"{path!r} defines task {task.name!r}, which {place} has already",
                    "give it another name",
                )
            places[task.name] = path
            tasks.append(task)
    return tuple(tasks)


def own_code(tasks: Collection[str]) -> str | None:
    """Digest of the code and files in the project's folder of tasks, if some of these tasks are the
    project's own; else None. Scores by other code are not compared."""
    if _loaded is None or not {task.name for task in own_tasks()}.intersection(tasks):
        return None
    return code_digest([_loaded.root / PACKAGE])


def _files(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of the files of the folder, except hidden ones and Python's caches."""
    found = []
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if file.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in parts):
            status = file.stat()
            found.append(("/".join(parts), status.st_size, status.st_mtime_ns))
    return tuple(found)


class _Source(SourceFileLoader):
    """Loader without bytecode: it is always the file that runs, and nothing is written beside
    it."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


class _Finder(MetaPathFinder):
    """Finder of the modules of one project: ``tasks/count.py`` is ``tasks.count``, so that they can
    import each other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002 - Python's signature
        package, *rest = fullname.split(".")
        if package != PACKAGE:
            return None
        place = self._folder.joinpath(*rest)
        source = place.with_suffix(".py")
        if rest and source.is_file():
            return spec_from_file_location(fullname, source, loader=_Source(fullname, str(source)))
        if not place.is_dir():
            return None
        spec = ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = [str(place)]
        return spec


def _forget() -> None:
    """Drop the modules that were loaded before."""
    global _loaded
    _loaded = None
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    for module in [module for module in sys.modules if module.split(".")[0] == PACKAGE]:
        del sys.modules[module]


def _tasks_in(root: Path, path: str) -> list[Task[Any]]:
    def wrong(problem: str, remedy: str) -> ParamsError:
        return ParamsError("tasks.module", f"{path!r} {problem}", remedy)

    if not (root / path).is_file():
        raise wrong(f"does not exist in {root}", "correct its name, or write null")
    try:
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    except (Exception, SystemExit) as error:
        raise wrong(f"cannot be imported: {where(error, root)}", "correct it there") from error
    found = module.__dict__.get("TASKS", module.__dict__.get("TASK"))
    tasks = [found] if isinstance(found, Task) else found
    if not isinstance(tasks, list | tuple) or not tasks:
        raise wrong("defines no task", "end it in TASK = Task(...), or in TASKS = (Task(...), ...)")
    for task in tasks:
        if (fault := _fault(task)) is not None:
            raise wrong(*fault)
    return [guarded(task, partial(where, root=root)) for task in tasks]


def where(error: BaseException, root: Path) -> str:
    """Describe an error of a module: the last line of its traceback, with file and line in the
    folder of tasks."""
    last = one_line("".join(traceback.format_exception_only(error)).strip().splitlines()[-1])
    if isinstance(error, ValidationError):  # its last line is an address
        first = error.errors()[0]
        last = one_line(f"{error.title}.{'.'.join(map(str, first['loc']))}: {first['msg']}")
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        place = (error.filename, error.lineno)
    else:
        frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
        inside = [frame for frame in frames if Path(frame[0]).is_relative_to(root / PACKAGE)]
        if not (inside or frames):
            return last
        place = (inside or frames)[-1]
    file = Path(place[0])
    shown = file.relative_to(root) if file.is_relative_to(root) else file
    return f"{last} ({shown.as_posix()}, line {place[1]})"


def _fault(task: Any) -> tuple[str, str] | None:
    """The problem of a definition, and its remedy; None: it is complete."""
    if not isinstance(task, Task):
        return f"lists {type(task).__name__} among its tasks", "write Task(...) for each of TASKS"
    if not isinstance(task.name, str) or re.fullmatch(TASK_NAME_PATTERN, task.name) is None:
        return f"defines a task named {task.name!r}", "write lower-case letters, digits and _, a letter first"
    kinds: dict[str, bool] = {
        "title, a text": isinstance(task.title, str) and bool(task.title.strip()),
        "settings, a subclass of BaseSettings": isinstance(task.settings, type)
        and issubclass(task.settings, BaseSettings),
        "make, a function": callable(task.make),
        "score, a function": callable(task.score),
        f"answer, one of {', '.join(_ANSWERS)}": task.answer in _ANSWERS,
        "all_or_nothing, True or False": isinstance(task.all_or_nothing, bool),
        "judge_calls, a function": callable(task.judge_calls),
        "parts, a tuple of one Part or more": isinstance(task.parts, tuple)
        and bool(task.parts)
        and all(isinstance(part, Part) for part in task.parts),
        "marking, a Marking or None": task.marking is None or isinstance(task.marking, Marking),
        "trace, a TraceBrief or None": task.trace is None or isinstance(task.trace, TraceBrief),
        "answers, a subclass of Record or None": task.answers is None
        or (isinstance(task.answers, type) and issubclass(task.answers, Record)),
        "form, an AnswerForm or None": task.form is None or isinstance(task.form, AnswerForm),
    }
    for need, holds in kinds.items():
        if not holds:
            field = need.partition(",")[0]
            return f"defines task {task.name!r} with {field} {getattr(task, field)!r:.100}", f"write {need}"
    if task.analysed:
        return (
            f"defines task {task.name!r} with analysed True",
            "remove it: thinking as JSON of subjects belongs to structured_caption",
        )
    return None
