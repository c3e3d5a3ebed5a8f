"""mkdocs: the notebooks of docs/tutorials, as pages.

They are kept without outputs. Where EXECUTE_TUTORIALS is true, as for the published site, each runs
in a fresh folder, and the page shows what it printed and drew.
"""

import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File
from nbclient import NotebookClient

SECONDS = 600
OUTPUT = "{ .text .no-copy .output }"
LOGGED = re.compile(r"^(?:WARNING: All log messages before absl::|[IWE]\d{4} \d\d).*\n?", re.M)


def execute(notebook: Any) -> None:
    """Run it in a fresh folder; an error of its own ends it."""
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=SECONDS, kernel_name="python3", coalesce_streams=True
        )
        client.resources = {"metadata": {"path": folder}}
        client.execute()


def as_markdown(notebook: Any) -> str:
    """Text as it is, programs and what they print as blocks, figures as images."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(_block("python", cell.source))
        parts += [_shown(output) for output in cell.outputs]
    return "\n\n".join(filter(None, parts)) + "\n"


def _shown(output: Any) -> str:
    if output.output_type == "stream":
        return _block(OUTPUT, LOGGED.sub("", output.text))
    data = output.data
    if "image/png" in data:
        picture = data["image/png"].replace("\n", "")
        return f'<img alt="" src="data:image/png;base64,{picture}">'
    return data.get("text/markdown") or _block(OUTPUT, data["text/plain"])


def _block(language: str, text: str) -> str:
    return f"``` {language}\n{text.rstrip()}\n```" if text.strip() else ""


def on_files(files: Any, config: Any) -> Any:
    """Each notebook becomes a page; the file stays beside it, to be downloaded."""
    for file in [each for each in files if each.src_uri.endswith(".ipynb")]:
        notebook = nbformat.read(file.abs_src_path, as_version=4)
        if config.extra["execute_tutorials"]:
            execute(notebook)
        link = f'<a href="../{Path(file.src_uri).name}" download>Download this notebook</a>'
        title, _, rest = as_markdown(notebook).partition("\n")
        page = file.src_uri.removesuffix(".ipynb") + ".md"
        files.append(File.generated(config, page, content=f"{title}\n\n{link}\n{rest}"))
    return files
