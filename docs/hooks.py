"""Add the generated pages to the documentation while mkdocs builds it; none of them is committed.

mkdocs calls the functions ``on_…`` (``hooks`` in ``mkdocs.yml``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from generators import api, commands, documents, environment, files, parameters
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]

#: Documents of the repository's root and the pages that show them.
DOCUMENTS = {
    "CONTRIBUTING.md": "development/contributing.md",
    "DECISIONS.md": "development/decisions.md",
    "CHANGELOG.md": "development/changelog.md",
}
#: Pictures outside of ``docs/`` and where pages find them.
PICTURES = {
    "benchmarks/results/ablation-tiny/figure.svg": "images/ablation-tiny.svg",
    "benchmarks/results/speed/growth.svg": "images/growth.svg",
}

#: What a browser would load from another server when it opens a page.
FOREIGN = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^\"]*")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put a page for each package of ``extra.api`` under the heading API of the navigation."""
    reference: list[Any] = next(section["Reference"] for section in config.nav or [] if "Reference" in section)
    reference.append(
        {"API": [{package: api.page_path(package)} for package in api.packages(ROOT, config.extra["api"])]}
    )
    return config


def on_files(files_: Files, config: MkDocsConfig) -> Files:
    """Generate the reference, and show the documents and pictures that stand elsewhere in the
    repository."""
    pages = {
        "reference/cli.md": commands.page(),
        "reference/params.md": parameters.page(ROOT),
        "reference/environment.md": environment.page((ROOT / ".env.example").read_text(encoding="utf-8")),
        "reference/files.md": files.page(ROOT),
        **{api.page_path(package): api.page(ROOT, package) for package in api.packages(ROOT, config.extra["api"])},
        **{
            page: documents.page((ROOT / name).read_text(encoding="utf-8"), name, page)
            for name, page in DOCUMENTS.items()
        },
    }
    for path, text in pages.items():
        files_.append(File.generated(config, path, content=text))
    for source, path in PICTURES.items():
        files_.append(File.generated(config, path, abs_src_path=str(ROOT / source)))
    return files_


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Refuse a page that loads anything from another server.

    Raises:
        PluginError: it does; the message names the page and what it loads.
    """
    if found := FOREIGN.search(output):
        raise PluginError(
            f"{page.file.src_uri}: {found[0]} is loaded from another server; keep a copy in docs/, or link to it"
        )
    return output
