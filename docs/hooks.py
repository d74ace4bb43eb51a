"""Hook of MkDocs: bring files that pages link to, outside of docs/, into the site.

Pages are read in the repository too, where `../experiments/results/README.md` is a working link. On the site the file
has the same path without the dots in front, and is a page of its own where it is Markdown.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

START = "start.md"  # the README's name on the site, whose first page is index.md
LINK = re.compile(r"(?<=\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the linked files, and those that they link to."""
    root = Path(config.docs_dir).parent
    waiting = [(f"docs/{file.src_uri}", Path(config.docs_dir, file.src_uri)) for file in files.documentation_pages()]
    while waiting:
        uri, path = waiting.pop()
        for target in _targets(uri, path.read_text()):
            if (
                target.startswith("docs/")
                or files.get_file_from_path(_on_site(target))
                or not (root / target).is_file()
            ):
                continue
            files.append(File.generated(config, _on_site(target), abs_src_path=str(root / target)))
            if target.endswith(".md"):
                waiting.append((target, root / target))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at where the files are on the site."""
    inside = Path(config.docs_dir, page.file.src_uri).is_file()
    base = posixpath.dirname(page.file.src_uri)
    here = f"docs/{page.file.src_uri}" if inside else page.file.src_uri.replace(START, "README.md")

    def link_on_site(match: re.Match[str]) -> str:
        link, rest = match.groups()
        if "://" in link:
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), link))
        return posixpath.relpath(_on_site(target), base or ".") + rest

    return LINK.sub(link_on_site, markdown)


def _on_site(target: str) -> str:
    """Path on the site of a file of the repository."""
    return START if target == "README.md" else target.removeprefix("docs/")


def _targets(uri: str, text: str) -> Iterator[str]:
    """The files of the repository that a page links to, as paths from the repository's root."""
    for link, _ in LINK.findall(text):
        if "://" not in link:
            yield posixpath.normpath(posixpath.join(posixpath.dirname(uri), link))
