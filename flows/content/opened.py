"""DVC's repository, opened for a flow; its errors name the file or folder of the project at
fault."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from flows.content.names import unstorable_names
from flows.errors import DvcError
from flows.processes import verbosity
from stages.params import ParamsError, load_params
from stages.runtime import paths
from stages.runtime.plain import one_line
from stages.runtime.sources.failures import access_error
from stages.tracking.lineage.cache import ContentStore
from stages.tracking.lineage.opening import open_content

_PATH_CHARACTERS = 300


@contextlib.contextmanager
def opened_content(root: Path) -> Iterator[ContentStore]:
    """Open the repository of the project at ``root``.

    Raises:
        DvcError: ``dvc.yaml`` breaks one of DVC's rules, a path is not UTF-8, or a link below the
            source folder leads nowhere.
        SourceAccessError: the source needs a package that is not installed.
    """
    from dvc.exceptions import DvcException

    # DVC warns of every frozen stage and every slow status; a plan is for a person to read.
    logging.getLogger("dvc").setLevel(logging.DEBUG if verbosity.is_verbose() else logging.ERROR)
    try:
        with open_content(root) as content:
            yield content
    except DvcException as error:
        chain = [str(error)] + ([str(error.__cause__)] if error.__cause__ else [])
        raise DvcError("dvc.yaml", f"{': '.join(chain)}", f"`dvc status` in {root} shows more") from error
    except ImportError as error:
        # DVC makes a dependency of an address with a package of its own.
        source = _source(root)
        if "is supported, but requires" not in str(error) or source is None:
            raise
        raise access_error("ingest.source", source, error) from error
    except UnicodeEncodeError as error:
        source = _source(root)
        odd = next(unstorable_names(root / Path(source).expanduser()), None) if source is not None else None
        name = one_line(error.object)[:_PATH_CHARACTERS]
        if odd is not None:
            raise DvcError.from_error(odd) from error
        raise DvcError(name, "its name is not UTF-8, and DVC stores no such name", "rename it") from error
    except OSError as error:
        # DVC follows links when it hashes a folder, and ends at one that leads nowhere.
        if error.filename is None or not Path(error.filename).is_symlink():
            raise
        raise DvcError(
            "ingest.source",
            f"{error.filename!r} is a link that leads nowhere ({error.strerror}), and DVC cannot hash it",
            f"remove such links: find {Path(error.filename).parent} -xtype l -delete",
        ) from error


def _source(root: Path) -> str | None:
    """Folder or address of videos that ``params.yaml`` names."""
    try:
        return load_params(root / paths.PARAMS_FILE).ingest.source
    except ParamsError:
        return None
