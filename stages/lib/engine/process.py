"""Start and end of a rollout engine on this machine.

vLLM has an environment of its own (``make vllm``): its torch and its FastAPI are other ones than
this project's.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, cast, get_args

import stages
from stages.errors import InputError
from stages.lib.engine.client import UNIX, EngineClient, number_of
from stages.lib.engine.errors import EngineLost, EngineUnavailable
from stages.runtime.project import find_project

log = logging.getLogger(__name__)

#: `hf`, `vllm`, or the address of an engine.
VARIABLE = "VIDBRIDGE_ROLLOUT_ENGINE"
#: What to do when it is gone.
LOST_VARIABLE = "VIDBRIDGE_ROLLOUT_ENGINE_LOST"
Lost = Literal["wait", "hf", "fail"]
#: Folder of the engine's environment.
ENVIRONMENT_VARIABLE = "VIDBRIDGE_ENGINE_ENV"
START_VARIABLE = "VIDBRIDGE_ENGINE_START_S"
#: Where ``make vllm`` builds it, from the project's folder.
ENVIRONMENT = Path(".tools/engine")
_SERVER = "stages.lib.engine_server"
#: Reading and profiling a large model takes minutes.
_START_S = 900.0
_STOP_S = 15.0
_LINES = 15
#: Variables that say which process of a training this one is, or what its Python is.
_OF_THE_TRAINING = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "VIRTUAL_ENV",
    "PYTHONHOME",
    "PYTHONWARNINGS",
)
_OF_THE_LAUNCHER = ("TORCHELASTIC_", "ROLE_", "ACCELERATE_", "NCCL_")


def chosen_engine(environ: Mapping[str, str] = os.environ) -> Literal["hf", "vllm"] | str:
    """Read VIDBRIDGE_ROLLOUT_ENGINE: ``hf`` (also when unset), ``vllm``, or an address
    (``unix:PATH``, ``http://HOST:PORT``).

    Raises:
        InputError: another value.
    """
    value = environ.get(VARIABLE, "").strip() or "hf"
    if value in ("hf", "vllm") or value.startswith((UNIX, "http://", "https://")):
        return value
    raise InputError(
        VARIABLE,
        f"{value!r} is unknown",
        "set hf, vllm (starts one here), or the address of one: unix:PATH, http://HOST:PORT",
    )


def when_lost(environ: Mapping[str, str] = os.environ) -> Lost:
    """Read VIDBRIDGE_ROLLOUT_ENGINE_LOST.

    Raises:
        InputError: another value than ``wait``, ``hf`` or ``fail``.
    """
    value = environ.get(LOST_VARIABLE, "").strip() or "wait"
    if value in get_args(Lost):
        return cast(Lost, value)
    raise InputError(LOST_VARIABLE, f"{value!r} is unknown", "set wait, hf or fail, or unset it")


def check_engine(environ: Mapping[str, str] = os.environ) -> str:
    """Check that the chosen engine can be started or answers; return what it is: ``hf``, ``vllm``
    or ``vllm elsewhere``.

    Raises:
        InputError: a variable has an invalid value.
        EngineUnavailable: it is to be started here, and there is none.
        EngineError: it does not answer, or is another one.
    """
    chosen = chosen_engine(environ)
    if chosen == "hf":
        return chosen
    when_lost(environ)
    if chosen == "vllm":
        engine_python(environ)
        EngineSettings.from_environment("float32", 1, environ=environ)
        return chosen
    with EngineClient.from_environment(chosen, environ) as client:
        client.health()
    return "vllm elsewhere"


@dataclass(frozen=True)
class EngineSettings:
    """Options of an engine that is started here.

    Attributes:
        dtype: of weights and computation.
        max_model_len: tokens of the longest prompt and its reply.
        videos: of a prompt, at most.
        kv_cache_gb: memory for keys and values, in GiB; None: what ``memory`` leaves, on a CPU 1.
        video_gb: memory for frames, in GiB.
        memory: share of each GPU's memory.
        gpus: numbers of the GPUs that hold the model together, which the training should not use;
            empty: the first one that is visible, shared with the training.
        seed: of what has no seed of its own.
    """

    dtype: Literal["float32", "bfloat16", "float16"]
    max_model_len: int
    videos: int = 1
    kv_cache_gb: float | None = None
    video_gb: float = 4.0
    memory: float = 0.9
    gpus: tuple[str, ...] = ()
    seed: int = 0

    @classmethod
    def from_environment(
        cls,
        dtype: Literal["float32", "bfloat16", "float16"],
        max_model_len: int,
        videos: int = 1,
        environ: Mapping[str, str] = os.environ,
    ) -> Self:
        """Read where and in how much memory it runs: VIDBRIDGE_ENGINE_GPUS, VIDBRIDGE_VLLM_MEMORY,
        VIDBRIDGE_ENGINE_KV_CACHE_GB and VIDBRIDGE_ENGINE_VIDEO_GB.

        Raises:
            InputError: one of them is invalid.
        """
        gpus = tuple(part.strip() for part in environ.get("VIDBRIDGE_ENGINE_GPUS", "").split(",") if part.strip())
        cache = environ.get("VIDBRIDGE_ENGINE_KV_CACHE_GB", "").strip()
        return cls(
            dtype,
            max_model_len,
            videos,
            kv_cache_gb=number_of("VIDBRIDGE_ENGINE_KV_CACHE_GB", 1.0, "GiB", environ) if cache else None,
            video_gb=number_of("VIDBRIDGE_ENGINE_VIDEO_GB", 4.0, "GiB", environ),
            memory=number_of(
                "VIDBRIDGE_VLLM_MEMORY", 0.9 if gpus else 0.3, "GPU memory, as a share", environ, most=1.0
            ),
            gpus=gpus,
        )

    def arguments(self) -> list[str]:
        """Arguments of the server."""
        options: dict[str, object] = {
            "dtype": self.dtype,
            "max-model-len": self.max_model_len,
            "videos": self.videos,
            "video-gb": self.video_gb,
            "memory": self.memory,
            "gpus": max(1, len(self.gpus)),
            "seed": self.seed,
        }
        if self.kv_cache_gb is not None:
            options["kv-cache-gb"] = self.kv_cache_gb
        return [f"--{name}={value}" for name, value in options.items()]


def engine_python(environ: Mapping[str, str] = os.environ) -> Path:
    """Find the Python of the engine's environment: in ``VIDBRIDGE_ENGINE_ENV``, else in
    ``.tools/engine`` of the project.

    Raises:
        EngineUnavailable: there is none.
    """
    value = environ.get(ENVIRONMENT_VARIABLE, "").strip()
    root = find_project()
    folder = Path(value).expanduser() if value else (root or Path.cwd()) / ENVIRONMENT
    python = folder.absolute() / "bin/python"
    if not python.exists():
        raise EngineUnavailable(
            ENVIRONMENT_VARIABLE if value else VARIABLE,
            f"{python} does not exist, and the engine is built there",
            "build it (make vllm), or set VIDBRIDGE_ROLLOUT_ENGINE=hf",
        )
    return python


class EngineProcess:
    """A running engine, and its client. Close it; it also ends with this process.

    Args:
        process: the server, which leads a group of processes.
        folder: of its socket; removed when it is closed.
        log_file: what it and vLLM print.
    """

    def __init__(self, process: subprocess.Popen[bytes], client: EngineClient, folder: Path, log_file: Path) -> None:
        self.client = client
        self.log_file = log_file
        self._process = process
        self.folder = folder

    @classmethod
    def start(
        cls,
        model: Path,
        settings: EngineSettings,
        *,
        log_file: Path | None = None,
        progress: Callable[[str], None] = log.info,
        environ: Mapping[str, str] = os.environ,
        command: tuple[str, ...] | None = None,
        folder: Path | None = None,
    ) -> Self:
        """Start an engine, and wait until it answers.

        Args:
            log_file: for what it prints; None: beside its socket, removed with it.
            progress: called every quarter of a minute with what it does.
            command: the server's command; None: that of the engine's environment.
            folder: for its socket, and so its address; made here; None: a new one.

        Raises:
            EngineUnavailable: there is no environment, or the engine ends or is not ready in time.
        """
        if command is None:
            command = (str(engine_python(environ)), "-m", _SERVER)
        patience_s = number_of(START_VARIABLE, _START_S, "seconds", environ)
        # Sockets have short paths.
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="vidbridge-engine-"))
        folder.mkdir(mode=0o700, exist_ok=True)
        log_file = log_file or folder / "log"
        address = folder / "socket"
        # The folder that holds `stages` may hold this project's libraries, too.
        (folder / "path").mkdir()
        (folder / "path/stages").symlink_to(Path(stages.__file__).resolve().parent)
        arguments = [*command, f"--model={model.resolve()}", f"--socket={address}", f"--parent={os.getpid()}"]
        with log_file.open("ab") as output:
            process = subprocess.Popen(
                [*arguments, *settings.arguments()],
                env=_environment(folder, settings, environ),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        client = EngineClient.from_environment(f"{UNIX}{address}", environ)
        engine = cls(process, client, folder, log_file)
        try:
            engine._wait(model, patience_s, progress)
        except BaseException:
            engine.close()
            raise
        return engine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def running(self) -> bool:
        """Whether the server's process runs."""
        return self._process.poll() is None

    def last_lines(self, count: int = _LINES) -> str:
        """End of what the engine printed."""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-count:])

    def close(self) -> None:
        """End the engine with all its processes, and remove its folder."""
        self.client.close()
        if self.running():
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_S)
        # Its processes outlive a server that was killed.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait(self, model: Path, patience_s: float, progress: Callable[[str], None]) -> None:
        started = told = time.monotonic()
        while True:
            if not self.running():
                status = self._process.returncode
                said = f"ended by signal {-status}" if status < 0 else f"exit status {status}"
                raise EngineUnavailable(
                    VARIABLE,
                    f"the engine for {model} did not start ({said}). It printed last:\n{self.last_lines()}",
                    "mend what it names, or set VIDBRIDGE_ROLLOUT_ENGINE=hf",
                )
            if (self.folder / "socket").exists():
                with suppress(EngineLost):
                    self.client.health()
                    return
            now = time.monotonic()
            if now - started > patience_s:
                raise EngineUnavailable(
                    VARIABLE,
                    f"the engine for {model} was not ready within {patience_s:g} s. It printed last:\n"
                    f"{self.last_lines()}",
                    f"raise {START_VARIABLE}, or set VIDBRIDGE_ROLLOUT_ENGINE=hf",
                )
            if now - told > 15:
                progress(f"the rollout engine starts ({now - started:.0f} s): {self.last_lines(1)}")
                told = now
            time.sleep(0.2)


def _environment(folder: Path, settings: EngineSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """Environment of the engine's process."""
    kept = {
        name: value
        for name, value in environ.items()
        if name not in _OF_THE_TRAINING and not name.startswith(_OF_THE_LAUNCHER)
    }
    if settings.gpus:
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(settings.gpus)
    return {
        # On a CPU vLLM would bind its threads to cores, and two engines theirs to the same ones.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        **kept,
        "PYTHONPATH": str(folder / "path"),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Sockets between vLLM's processes.
        "VLLM_RPC_BASE_PATH": str(folder),
    }
