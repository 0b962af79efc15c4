"""Machines of a team as namespaces of this one: each with a home, an environment, a temporary
folder and a name of its own.

A host sees nothing of the others' folders nor of this checkout; what it shares with them are
servers, and folders that are named.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from tests.support.checkout import ROOT
from tests.support.servers.service import environment

_SHEBANG = b"#!"


def missing() -> str | None:
    """Why hosts cannot be made here, None when they can."""
    if shutil.which("unshare") is None:
        return "hosts need unshare: apt install util-linux"
    done = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"hosts need user namespaces: {done.stderr.strip()}"


#: As root of a user namespace of its own one may mount, whoever one is outside.
_UNSHARE = (
    "unshare",
    "--user",
    "--map-root-user",
    "--mount",
    "--uts",
    "--pid",
    "--fork",
    "--mount-proc",
    "--kill-child",
)


@dataclass
class Host:
    """``folder`` holds all that it has; ``hidden`` are the folders that it does not see."""

    name: str
    folder: Path
    env: dict[str, str]
    hidden: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for path in (self.home, self.deps, self.folder / "tmp"):
            path.mkdir(parents=True)
        self._make_environment()

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def deps(self) -> Path:
        """Where the installed packages appear. By that name datasets knows what is installed, and
        hashes only the rest by value."""
        return self.folder / "packages/site-packages"

    @property
    def project(self) -> Path:
        return self.folder / "project"

    @property
    def bin(self) -> Path:
        return self.folder / "env/bin"

    def _make_environment(self) -> None:
        """An environment with an interpreter of its own, whose packages are mounted; the project's
        code is its clone's."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.folder / "env")], check=True)
        site = next((self.folder / "env/lib").glob("python*/site-packages"))
        # Of a folder that is named here the .pth files are not read, so the checkout that is
        # installed there stays out.
        (site / "host.pth").write_text(f"{self.project}\n{self.deps}\n", encoding="utf-8")
        for script in Path(sys.executable).parent.iterdir():
            if not script.is_file() or script.is_symlink():
                continue
            text = script.read_bytes()
            first, _, rest = text.partition(b"\n")
            if text.startswith(_SHEBANG) and b"python" in first:
                copy = self.bin / script.name
                copy.write_bytes(f"#!{self.bin}/python\n".encode() + rest)
                copy.chmod(0o755)

    def environ(self, **changes: str) -> dict[str, str]:
        return {
            **{name: value for name, value in environment().items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
            "HOME": str(self.home),
            "TMPDIR": str(self.folder / "tmp"),
            "PATH": os.pathsep.join([str(self.bin), "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"]),
            "XDG_CACHE_HOME": str(self.home / ".cache"),
            **self.env,
            **changes,
        }

    def _inside(self, command: Sequence[str], cwd: Path) -> list[str]:
        packages = sysconfig.get_paths()["purelib"]
        steps = [
            f"hostname {shlex.quote(self.name)}",
            f"mount --bind {shlex.quote(packages)} {shlex.quote(str(self.deps))}",
            # The packages are mounted by now, and stay so under what hides the place they come
            # from.
            *(f"mount -t tmpfs none {shlex.quote(str(path))}" for path in self.hidden if path.exists()),
            f"cd {shlex.quote(str(cwd))}",
            f"exec {shlex.join(command)}",
        ]
        return [*_UNSHARE, "sh", "-c", " && ".join(steps)]

    def start(
        self, *command: str, cwd: Path | None = None, log: Path | None = None, **changes: str
    ) -> subprocess.Popen[str]:
        """A command on this host; its output goes to ``log``, or into pipes. Whatever ends it ends
        all that it started."""
        with log.open("ab") if log else nullcontext() as output:
            return subprocess.Popen(
                self._inside(command, cwd or self.folder),
                env=self.environ(**changes),
                stdin=subprocess.DEVNULL,
                stdout=output or subprocess.PIPE,
                stderr=subprocess.STDOUT if log else subprocess.PIPE,
                text=True,
                start_new_session=True,
            )

    def call(
        self, *command: str, cwd: Path | None = None, timeout_s: float = 600, **changes: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._inside(command, cwd or self.folder),
            env=self.environ(**changes),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def succeed(self, *command: str, cwd: Path | None = None, timeout_s: float = 600, **changes: str) -> str:
        """What a command says, both streams, that must end with status 0."""
        done = self.call(*command, cwd=cwd, timeout_s=timeout_s, **changes)
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{self.name}: {shlex.join(command)} ended with {done.returncode}:\n{said[-6000:]}"
        return said

    def clone(self, url: str, branch: str = "main") -> Path:
        self.succeed("git", "clone", "--quiet", "--branch", branch, url, str(self.project))
        return self.project

    def vidbridge(self, *arguments: str, timeout_s: float = 600, **changes: str) -> str:
        return self.succeed("vidbridge", *arguments, cwd=self.project, timeout_s=timeout_s, **changes)


def make_hosts(folder: Path, env: dict[str, str], *names: str) -> list[Host]:
    """Hosts that do not see each other, nor this checkout."""
    places = {name: folder / name for name in names}
    made = []
    for name, place in places.items():
        others = tuple(other for key, other in places.items() if key != name)
        made.append(Host(name, place, dict(env), (*others, ROOT)))
    return made
