"""Hooks of ``mkdocs build``: the API's source, the benchmark results, and a check that no page loads from other hosts.

The build needs neither mkc-fast nor its dependencies to be installed, and no network.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# In the repository the pages link the results where they are; on the site they lie beside the pages.
RESULTS, RESULTS_LINK = ROOT / "benchmarks" / "results", "../benchmarks/results/"
# Tags that make a browser load something as the page opens, and what they load.
_LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?\b(?:src|srcset|data)\s*=\s*[\"']?(?P<src>[^\"'\s>]+)"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preconnect|dns-prefetch|preload|prefetch|icon|manifest|modulepreload))"
    r"[^>]*?\bhref\s*=\s*[\"']?(?P<href>[^\"'\s>]+)",
    re.IGNORECASE,
)
_STYLE_LOADED = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)")
_source: tempfile.TemporaryDirectory[str] | None = None


@event_priority(100)
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lay the package's folders out as they are installed, so that the API pages can be made from the source."""
    global _source  # noqa: PLW0603 - kept until the process ends
    if _source is None:
        _source = tempfile.TemporaryDirectory(prefix="mkc-fast-docs-")
        _link_packages(Path(_source.name) / "mkc_fast")
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_source.name]
    return config


def _link_packages(target: Path) -> None:
    """Link ``mkc_fast`` and the folders that ``package-dir`` in pyproject.toml names as its sub-packages."""
    target.mkdir()
    for item in (ROOT / "mkc_fast").iterdir():
        (target / item.name).symlink_to(item)
    folders = re.findall(r'^"mkc_fast\.(\w+)"\s*=\s*"([\w/]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for name, folder in folders:
        (target / name).symlink_to(ROOT / folder)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Publish the benchmark results, which the pages link."""
    for path in sorted(RESULTS.rglob("*")):
        if path.is_file():
            name = path.relative_to(RESULTS.parent).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:  # noqa: ARG001 - MkDocs passes it by name
    """Point links to the results to where the site has them."""
    return markdown.replace(f"({RESULTS_LINK}", "(results/")


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that loads anything from another host.

    Raises:
        PluginError: A page or style sheet does, or holds a diagram, whose script comes from another host.
    """
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in {".html", ".svg"} and (found := loaded_elsewhere(path.read_text(encoding="utf-8"))):
            raise PluginError(f"{path}: loads {found}")
        if path.suffix == ".css" and (match := _STYLE_LOADED.search(path.read_text(encoding="utf-8"))):
            raise PluginError(f"{path}: loads {match[1]}")


def loaded_elsewhere(html: str) -> str | None:
    """What a page loads from another host as it opens, if anything."""
    for match in _LOADED.finditer(html):
        address = match["src"] or match["href"]
        if re.match(r"(?:https?:)?//", address, re.IGNORECASE):
            return address
    if re.search(r"class=[\"'][^\"']*\bmermaid\b", html):
        return "a script for its diagrams"
    style = _STYLE_LOADED.search(html)
    return style[1] if style else None
