"""Checks of the machine: programs, packages, processors, memory and disk."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

from flows.processes.environment import shipped
from flows.project.diagnosis.finding import Finding, State, installed_version, output_of
from flows.repro import preflight


def check_python(_root: Path) -> Finding:
    found = (
        f"{platform.python_version()} at {sys.executable}, {platform.system()} {platform.machine()}, {os.cpu_count()}"
        " cores"
    )
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return Finding(
            "python", "warn", found, "tested on Linux x86-64; elsewhere the best is tried (no decord: PyAV reads)"
        )
    return Finding("python", "ok", found)


def check_ffmpeg(_root: Path) -> Finding:
    path = preflight.ffmpeg()
    if path is None:
        named = os.environ.get("VIDBRIDGE_FFMPEG")
        if named:
            return Finding(
                "ffmpeg",
                "missing",
                f"VIDBRIDGE_FFMPEG names {named}, which is not a program",
                "correct or unset VIDBRIDGE_FFMPEG",
            )
        return Finding(
            "ffmpeg",
            "missing",
            "imageio-ffmpeg brings none",
            "uv sync, or set VIDBRIDGE_FFMPEG to an ffmpeg with libx264",
        )
    output = output_of(str(path), "-hide_banner", "-version")
    if output is None:
        return Finding("ffmpeg", "missing", f"{path} does not start", "set VIDBRIDGE_FFMPEG to one that does")
    encoder = "libx264" in (output_of(str(path), "-hide_banner", "-encoders") or "")
    first = output.splitlines()[0].removeprefix("ffmpeg version ").split(" Copyright")[0]
    if not encoder:
        return Finding(
            "ffmpeg", "missing", f"{first} at {path}, without libx264", "unset VIDBRIDGE_FFMPEG to use the locked one"
        )
    return Finding("ffmpeg", "ok", f"{first} with libx264 at {path}")


def check_decord(_root: Path) -> Finding:
    if found := installed_version("decord"):
        return Finding("decord", "ok", found)
    return Finding("decord", "warn", "not installed", "PyAV reads every video; on Linux x86-64: uv sync")


def check_pyav(_root: Path) -> Finding:
    found = installed_version("av")
    return Finding("PyAV", "ok", found) if found else Finding("PyAV", "missing", "not installed", "uv sync")


def check_torch(_root: Path) -> Finding:
    names = {name: installed_version(name) for name in ("torch", "torchvision", "transformers", "trl", "accelerate")}
    found = ", ".join(f"{name} {number}" for name, number in names.items() if number)
    missing = [name for name, number in names.items() if not number]
    return (
        Finding("torch", "missing", f"{', '.join(missing)} not installed", "uv sync")
        if missing
        else Finding("torch", "ok", found)
    )


def check_gpu(_root: Path) -> Finding:
    listed = output_of("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    if not listed:
        return Finding("GPU", "ok", "none found; the recipes tiny and smoke need none", "")
    gpus = "; ".join(listed.splitlines())
    # Only torch knows whether its CUDA fits the driver; its import is slow, so it is imported only
    # where a GPU is.
    seen = output_of(sys.executable, "-c", "import torch; print(torch.cuda.device_count(), torch.version.cuda)")
    if seen is None or seen.startswith("0"):
        return Finding(
            "GPU",
            "warn",
            f"{gpus}; torch sees none of them ({seen or 'it does not import'})",
            "update the driver: nvidia-smi",
        )
    return Finding("GPU", "ok", f"{gpus}; torch sees {seen.split()[0]} (CUDA {seen.split()[-1]})")


def check_deepspeed(_root: Path) -> Finding:
    found = installed_version("deepspeed")
    if found is None:
        return Finding("DeepSpeed", "warn", "not installed", "only needed to train on several devices; Linux: uv sync")
    named = os.environ.get("VIDBRIDGE_DEEPSPEED")
    if named and not Path(named).is_file():
        return Finding(
            "DeepSpeed",
            "missing",
            f"{found}; VIDBRIDGE_DEEPSPEED: {named} is not a file",
            f"{shipped('deepspeed') / 'zero2.json'} is one",
        )
    return Finding("DeepSpeed", "ok", f"{found}, {f'with {named}' if named else 'not asked for (VIDBRIDGE_DEEPSPEED)'}")


def check_versions(_root: Path) -> Finding:
    names = ("prefect", "dvc", "mlflow", "fastapi", "sqlalchemy")
    found = {name: installed_version(name) for name in names}
    text = ", ".join(f"{name} {number}" for name, number in found.items())
    if not all(found.values()):
        return Finding("pipeline", "missing", text, "uv sync")
    limits = {"fastapi": (0, 151), "sqlalchemy": (2, 1)}
    for name, limit in limits.items():
        if tuple(int(part) for part in str(found[name]).split(".")[:2]) >= limit:
            wanted = ".".join(map(str, limit))
            return Finding(
                "pipeline", "missing", text, f"{name} must be below {wanted}, or Prefect fails without a word: uv sync"
            )
    return Finding("pipeline", "ok", text)


def check_disk(root: Path) -> Finding:
    usage = shutil.disk_usage(root)
    free = usage.free / preflight.GB
    if free < 2:
        return Finding(
            "disk", "missing", f"{free:.1f} GB free at {root}", "make room: the recipe tiny needs about 1 GB"
        )
    return Finding("disk", "ok", f"{free:.0f} GB free at {root}")


def check_memory(_root: Path) -> Finding:
    import psutil

    free = psutil.virtual_memory().available / preflight.GB
    state: State = "ok" if free > 4 else "warn"
    return Finding(
        "memory",
        state,
        f"{free:.1f} GB available",
        "" if free > 4 else "a training process of the recipe tiny takes up to 4 GB",
    )


CHECKS = (
    check_python,
    check_ffmpeg,
    check_decord,
    check_pyav,
    check_torch,
    check_gpu,
    check_deepspeed,
    check_versions,
    check_memory,
    check_disk,
)
