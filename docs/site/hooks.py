"""Hooks of mkdocs: pages from outside of ``docs/``, and links that work on the site as they do on GitHub.

Every document stays the file that it is in the repository. `PAGES` are those outside of ``docs/`` that the site shows
as well. A relative link to another page of the site stays relative, and one to anything else in the repository becomes
a link to the repository, if the file is there: otherwise it is a warning, which ends a strict build. Badges from other
hosts become their text, so that reading the site asks no other host for anything.
"""

import logging
import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "launch/README.md": "launch.md",
    "benchmarks/README.md": "benchmarks.md",
    "notebooks/README.md": "notebooks.md",
}
_FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?P<before>\]\(|\bsrc=\"|\bhref=\")(?P<path>[^)\s\"#]*)(?P<anchor>#[^)\s\"]*)?(?=[)\s\"])")
_REMOTE_IMAGE = re.compile(r"!\[(?P<text>[^\]]*)\]\(https?://[^)\s]+\)")  # such as a badge
_log = logging.getLogger("mkdocs.hooks.links")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Takes the repository's address from where it is decided."""
    config.repo_url = re.search(r'url="(.+)"', (_root(config) / "setup.py").read_text(encoding="utf-8"))[1]
    config.repo_name = "/".join(config.repo_url.split("/")[-2:])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from outside of the folder."""
    for source, page in PAGES.items():
        file = _root(config) / source
        if file.is_file():
            files.append(File.generated(config, page, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links of a page outside of its blocks of code."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # it has no siblings

    def rewrite(match: re.Match) -> str:
        return match["before"] + _target(match, page, config, files) + (match["anchor"] or "")

    def rewritten(text: str) -> str:
        return _LINK.sub(rewrite, _REMOTE_IMAGE.sub(r"\g<text>", text))

    parts, end = [], 0
    for block in _FENCE.finditer(markdown):
        parts += [rewritten(markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, rewritten(markdown[end:])])


def _root(config: MkDocsConfig) -> Path:
    """Returns the root of the repository, which holds ``mkdocs.yml``."""
    return Path(config.config_file_path).parent


def _target(match: re.Match, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Returns what a link to a file of the repository becomes on a page."""
    path = match["path"]
    if not path or re.match(r"[a-z]+:|/", path):
        return path
    source = Path(os.path.normpath(Path(page.file.abs_src_path).parent / path))
    if not source.exists() or not source.is_relative_to(_root(config)):
        if match["before"] != "](":  # mkdocs itself warns of these
            _log.warning("%s names %s, which is not in the repository", page.file.abs_src_path, path)
        return path
    name = source.relative_to(_root(config)).as_posix()
    on_site = PAGES.get(name, name.removeprefix("docs/") if name.startswith("docs/") else "")
    file = files.get_file_from_path(on_site) if on_site else None
    if file is None:
        kind = "tree" if source.is_dir() else "blob"
        return f"{config.repo_url}/{kind}/main/{name}"
    if match["before"] == "](":  # mkdocs turns a path between source files into one between pages, and checks anchors
        return os.path.relpath(on_site, PurePosixPath(page.file.src_uri).parent)
    return file.url_relative_to(page.file)
