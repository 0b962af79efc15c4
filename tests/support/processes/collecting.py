"""Plugin of pytest for a machine that lacks packages: a module, or a test, that imports one of them
is skipped, and the reason names it."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest


def missing(error: BaseException | None) -> str | None:
    """Package that an error says is not here; None for other errors, and if it is here."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    package = error.name.partition(".")[0]
    return package if find_spec(package) is None else None


class SkippedModule(pytest.Module):
    def collect(self) -> Iterable[Any]:
        try:
            return super().collect()
        except self.CollectError as error:
            if package := missing(error.__cause__):
                pytest.skip(f"{package} is not installed here", allow_module_level=True)
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> pytest.Module:
    return SkippedModule.from_parent(parent, path=module_path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    report = yield
    if report.failed and call.excinfo is not None and (package := missing(call.excinfo.value)):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, f"Skipped: {package} is not installed here")
    return report
