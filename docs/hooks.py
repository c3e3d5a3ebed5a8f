"""mkdocs: pages of files that lie outside docs/, and links to the rest of the repository."""

import re
from os.path import dirname, normpath, relpath
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"(!?)\[([^\]\n]*)\]\(([^)\s:]+)\)")


def on_files(files: Any, config: Any) -> Any:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they lead in the repository, made to lead to the site's pages.

    A link to a file that is no page, a program for instance, becomes its text.
    """
    here = page.file.src_uri
    source = SOURCES.get(here, f"docs/{here}")

    def in_site(link: re.Match[str]) -> str:
        image, text, address = link.groups()
        path, *anchor = address.split("#")
        target = normpath(f"{dirname(source)}/{path}".lstrip("/")) if path else source
        site = PAGES.get(target, target.removeprefix("docs/"))
        if site == target:
            return text
        site = re.sub(r"\.ipynb$", ".md", site)
        return f"{image}[{text}]({'#'.join([relpath(site, dirname(here) or '.'), *anchor])})"

    parts = re.split(r"(^```.*?^```)", markdown, flags=re.M | re.S)
    return "".join(each if each.startswith("```") else LINK.sub(in_site, each) for each in parts)
