"""Weights for a rollout engine: folders that appear whole, of which the last two are kept.

A folder is written under another name and renamed when it is complete, and its ``weights.json``
(:class:`~stages.lib.engine.wire.Manifest`) says how large each file is, so that a reader
recognises a half-written or half-removed one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from safetensors import SafetensorError

from stages.errors import fault_of
from stages.lib.engine import wire
from stages.lib.engine.errors import WeightsError
from stages.lib.engine.wire import Manifest, WireError

#: Folder for weights that the engine reads; it must see it under the same path.
VARIABLE = "VIDBRIDGE_ENGINE_WEIGHTS"
#: Folders that are kept: the engine may still read the last but one.
KEPT = 2
#: Where a file system in memory is, on Linux.
_IN_MEMORY = Path("/dev/shm")  # noqa: S108
_LOCK = "lock"
_PARTIAL = ".partial"
#: What :class:`SafetensorError` says of a full disk or an exceeded limit; it has no number.
_SAID = {"No space left": errno.ENOSPC, "quota": errno.EDQUOT, "File too large": errno.EFBIG}


class Published(NamedTuple):
    """Weights that an engine can load: their name, which no others have, and their folder."""

    name: str
    folder: Path


class WeightsFolder:
    """Folder of one training for the weights that its engine reads. Close it: it may be in memory.

    Args:
        root: folder, for this training alone; made if it does not exist.
        model: folder of the model, with the files besides the weights.
        kept: number of folders that are kept.

    Raises:
        WeightsError: the folder cannot be made, or another process uses it.
    """

    def __init__(self, root: Path, model: Path, kept: int = KEPT) -> None:
        self.root = root
        self._kept = kept
        self._model = model.resolve()
        try:
            root.mkdir(parents=True, mode=0o700, exist_ok=True)
            self._lock = os.open(root / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise _failed(root, error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise WeightsError(
                VARIABLE, f"{root} is in use by another training", "wait until it ends, or name another folder"
            ) from error
        for left in root.glob(f"*{_PARTIAL}"):
            shutil.rmtree(left)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.root, ignore_errors=True)
        os.close(self._lock)

    def publish(self, label: str, save: Callable[[Path], object], size_bytes: int) -> Published:
        """Write weights, and remove all but the last ones.

        Args:
            label: what they are, such as training and step: letters, digits, ``.``, ``_``, ``-``.
            save: writes them, with or without ``config.json``, into the folder that it is given.
            size_bytes: about how much it will write.

        Raises:
            WeightsError: they do not fit, or cannot be written. Nothing of them is left.
            ValueError: the label has other characters.
        """
        if not re.fullmatch(r"[\w.-]+", label, re.ASCII):
            raise ValueError(f"label: {label!r} has characters of other kinds")
        self._remove_old(self._kept - 1)
        free = shutil.disk_usage(self.root).free
        if free < size_bytes:
            raise WeightsError(
                VARIABLE,
                f"{self.root} has {free / 1e9:.1f} GB free, and the weights are {size_bytes / 1e9:.1f} GB",
                f"free some, or name a folder of {self._kept + 1} times that size; {self._kept} of them are kept",
            )
        # A name of its own each time: an engine must not take the weights of an interrupted
        # training for those that its continuation writes at the same step.
        name = f"{label}-{secrets.token_hex(4)}"
        partial, folder = self.root / f"{name}{_PARTIAL}", self.root / name
        try:
            partial.mkdir()
            save(partial)
            for file in self._model.iterdir():
                if file.is_file() and file.suffix != ".safetensors" and not file.name.endswith(".index.json"):
                    with suppress(FileExistsError):
                        (partial / file.name).symlink_to(file)
            weights = {file.name: file.stat().st_size for file in sorted(partial.glob("*.safetensors"))}
            (partial / wire.MANIFEST).unlink(missing_ok=True)  # the link to that of a model that was published
            Manifest(name, weights).write(partial)
            partial.rename(folder)
        except (OSError, SafetensorError) as error:
            raise _failed(self.root, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return Published(name, folder)

    def complete(self) -> list[Published]:
        """The complete weights in this folder, the latest last."""
        found: list[tuple[int, Published]] = []
        for file in self.root.glob(f"*/{wire.MANIFEST}"):
            if file.parent.name.endswith(_PARTIAL):
                continue
            with suppress(WireError):
                found.append((file.stat().st_mtime_ns, Published(wire.read_manifest(file.parent).name, file.parent)))
        return [published for _, published in sorted(found)]

    def _remove_old(self, kept: int) -> None:
        keep = {published.folder for published in self.complete()[-kept:]}
        for folder in self.root.iterdir():
            if folder.is_dir() and folder not in keep:
                # Without it, what is left of an interrupted removal is not taken for weights.
                (folder / wire.MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(folder)


def weights_root(scratch: Path, size_bytes: int, kept: int = KEPT, environ: Mapping[str, str] = os.environ) -> Path:
    """Choose the folder of a training's weights: below ``VIDBRIDGE_ENGINE_WEIGHTS``, else in
    memory if one more than those that are kept fit there, else in ``scratch``.

    Removes what trainings that were killed left in memory.
    """
    own = hashlib.sha256(str(scratch.resolve()).encode()).hexdigest()[:12]
    if value := environ.get(VARIABLE, "").strip():
        return Path(value).expanduser().resolve() / own
    if not _IN_MEMORY.is_dir():
        return scratch / "weights"
    shared = _IN_MEMORY / f"vidbridge-{os.getuid()}"
    if shared.is_dir():
        for folder in shared.iterdir():
            _remove_unused(folder)
    fits = shutil.disk_usage(_IN_MEMORY).free >= (kept + 1) * size_bytes
    return shared / own if fits else scratch / "weights"


def _remove_unused(folder: Path) -> None:
    """Remove a folder that no process holds."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)


def _failed(root: Path, error: OSError | SafetensorError) -> WeightsError:
    if isinstance(error, SafetensorError):
        number = next((number for said, number in _SAID.items() if said in str(error)), None)
        if number is None:
            return WeightsError(VARIABLE, f"weights cannot be written into {root}: {error}", "name another folder")
        error = OSError(number, os.strerror(number), str(root))
    fault = fault_of(error)
    problem = f"weights cannot be written into {root}: {fault.problem if fault else error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WeightsError(VARIABLE, problem, "free some space, or name a folder with more")
    return WeightsError(VARIABLE, problem, fault.remedy if fault else "name another folder")
