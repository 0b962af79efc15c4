import os
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.checkout import refuse_results
from tests.support.surroundings import KEPT

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


@pytest.fixture(scope="session")
def serving_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with one registered model that has learned to name colours; made once for all that
    serves it."""
    from tests.support.projects.serving import make_project

    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("VIDBRIDGE_", "MLFLOW_", "GIT_")):
                patch.delenv(name)
        yield make_project(tmp_path_factory.mktemp("serving") / "project")


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
