import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support.checkout import refuse_results
from tests.support.processes.once import made_once
from tests.support.surroundings import KEPT, forget

# Demo, runs and benchmarks leave results in the checkout; a test that reads them would pass or fail
# by what was run before it.
sys.addaudithook(refuse_results)

# One thread a process: two on a busy two-core machine are several times slower, and results stay
# the same everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# How long an example takes says something of the machine; a test that hangs is ended by its
# time-out.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Make the scheduler of `--dist loadfile`; files of a group go to one worker."""
    if config.getoption("dist") != "loadfile":
        return None
    from tests.support.processes.workers import FilesTogether

    return FilesTogether(config, log)


@pytest.fixture(scope="session")
def serving_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with one registered model that has learned to name colours, for all tests of this
    process that serve it."""
    from tests.support.projects.serving import make_project

    root = tmp_path_factory.mktemp("serving") / "project"
    with pytest.MonkeyPatch.context() as patch:
        forget(patch, "VIDBRIDGE_", "MLFLOW_", "GIT_")
        shutil.copytree(made_once(tmp_path_factory, "served-project", make_project), root, symlinks=True)
        yield root


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file that nothing may write over, beside what a test works in; see ``assert_untouched``."""
    file = tmp_path / "outside/file"
    file.parent.mkdir()
    file.write_text(KEPT)
    return file


@pytest.fixture(autouse=True)
def environment_is_left_as_it_was() -> Iterator[None]:
    """Commands enter a project by setting its environment; other tests of this process must not
    find themselves in it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session", autouse=True)
def tests_run_in_an_empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No project lies upward of the working folder, so that a test which names none fails instead
    of finding the checkout."""
    folder = tmp_path_factory.mktemp("working-folder")
    with chdir(folder):
        yield
    assert not (left := sorted(path.name for path in folder.iterdir())), (
        f"tests left files in their working folder: {left}"
    )
