"""A Python that lacks packages, as on a machine that somebody else set up."""

from __future__ import annotations

import sys
import sysconfig
import venv
from collections.abc import Collection
from importlib.metadata import distribution
from pathlib import Path


def bare_python(folder: Path, without: Collection[str]) -> Path:
    """Make an environment in ``folder`` with all packages of this one but these distributions;
    return its interpreter."""
    here = Path(sysconfig.get_path("purelib"))
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    there = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    gone = {file.parts[0] for name in without for file in distribution(name).files or ()}
    for entry in here.iterdir():
        if entry.name not in gone and entry.suffix != ".pth":
            (there / entry.name).symlink_to(entry)
    return folder / "bin" / "python"
