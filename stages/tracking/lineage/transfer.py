"""The DVC remote of a project or a cache folder: open it, and copy objects from it and to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.tracking.lineage.cache_folder import is_cache
from stages.tracking.lineage.remote import REMOTE_VARIABLE, is_of_remote, remote_error, remote_errors, remote_label
from stages.tracking.lineage.uri import TrackingError


class MissingContent(TrackingError):
    """An object is neither in the cache nor, undamaged, in the remote, which did answer."""


def remote_name(repo: Any) -> str | None:
    """Name of the remote that ``repo`` uses; None if none is configured."""
    return repo.config["core"].get("remote") or None


def open_remote(repo: Any, root: Path, what: str) -> Any:
    """Object database of the remote that ``repo`` uses. ``what`` names in errors what is wanted of
    it.

    Raises:
        MissingContent: no remote is configured.
        TrackingError: DVC does not understand its configuration.
    """
    from dvc.exceptions import DvcException

    name = remote_name(repo)
    if not name:
        raise missing_content(
            root, name, what, what, f"and no remote is configured (dvc remote add -d NAME URL, or {REMOTE_VARIABLE})"
        )
    try:
        return repo.cloud.get_remote_odb(name)
    except (DvcException, ImportError) as error:
        # A missing package for this kind of remote is an ImportError, which names the package.
        remedy = f"check .dvc/config and {REMOTE_VARIABLE}"
        if is_cache(root):
            remedy = f"outside a project set its URL in {REMOTE_VARIABLE}, or add it: dvc remote add --global NAME URL"
        message = "; ".join(str(error).split("\n"))
        raise TrackingError(f"DVC remote {remote_label(name)}", message, remedy) from error
    except Exception as error:
        if not is_of_remote(error):
            raise
        raise remote_error(name, what, error) from error


def transfer_objects(cache: Any, source: Any, target: Any, items: set[Any], name: str | None, what: str) -> int:
    """Copy objects between ``cache`` and the remote ``name``: one is ``source``, the other
    ``target``. Returns the number of objects new in ``target``.

    Raises:
        TrackingError: the remote does not answer, or an object could not be copied.
    """
    from dvc_data.hashfile.transfer import transfer

    lost: set[Any] = set()
    with remote_errors(name, what):
        # Verified on arrival: others write to the remote. `shallow`: a folder's list comes
        # without its files.
        done = transfer(
            source,
            target,
            items,
            verify=target is cache,
            cache_odb=cache,
            shallow=True,
            validate_status=lambda status: lost.update(status.missing),
        )
    if done.failed:
        first = next(iter(done.failed)).value
        raise TrackingError(
            f"DVC remote {remote_label(name)}",
            f"{what}: {len(done.failed)} objects failed, first {first}; the log above says why",
            "try again",
        )
    return len(done.transferred)


def missing_content(root: Path, name: str | None, what: str, oid: str, where: str) -> MissingContent:
    """Error of an object that neither the cache of ``root`` nor, as ``where`` says, the remote
    ``name`` has."""
    if is_cache(root):
        location = f"neither in the cache folder {root} {where}"
        if not name:
            location = f"not in the cache folder {root}, and {REMOTE_VARIABLE} is not set"
        return MissingContent(
            what,
            f"object {oid} is {location}",
            f"set {REMOTE_VARIABLE} to the URL of the DVC remote that holds it"
            " (on the machine that made it: dvc push), or VIDBRIDGE_PROJECT to a clone of the project",
        )
    return MissingContent(
        what,
        f"object {oid} is neither in the DVC cache of {root} {where}",
        "on the machine that made it run"
        " dvc push, here run dvc fetch, or set VIDBRIDGE_PROJECT to the project that holds it",
    )
