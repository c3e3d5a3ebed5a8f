"""The tutorials run from their first cell to their last, and the site shows what they print."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
PRINTED = {
    "protect": [
        r"alice, with a key \| 9\d\.\d%",
        r"still consists\s+of copies",
        r"TensorFlow is loaded: False",
        r"'digits' is locked",
        r"still exact\s+copies: no training sample",
        r"MNIST: (right on [89]\d\.\d%|TFDS_DATA_DIR is not set)",
    ],
    "customers": [
        r"This model is locked",
        r"weights of 'digits': guilty: bob\s",
        r"service of 'digits': guilty: carol\s",
        r"guilty: bob, weights, p = .*\ncommitted",
        r"guilty: carol, service, p = .*\ncommitted",
        r"\| bob \| yes \| no \| a fine-tuned copy \| case-bob \|",
        r"\| carol \| yes \| yes \| a service \| case-carol \|",
    ],
    "serve": [
        r"Right on 9\d\.\d% of 397 images",
        r"outputs are of another version",
        r"alice: 9\d\.\d%",
        r"bob: Key \w+ was revoked",
        r"version 2 \['two'",
        r"alice is right on 9\d\.\d%",
    ],
    "transfer": [r"frozen backbone is right on", r"alice is right on 9\d\.\d%"],
}


@pytest.mark.parametrize("name", [path.stem for path in sorted(TUTORIALS.glob("*.ipynb"))])
def test_tutorial_runs(name: str) -> None:
    import nbformat  # of the extra `docs`, which other tests do without

    from docs.notebooks import as_markdown, execute

    notebook = nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)
    execute(notebook)
    page = as_markdown(notebook)
    missing = [each for each in PRINTED[name] if not re.search(each, page)]
    assert missing == [], page
    assert page.count('<img alt="" src="data:image/png;base64,') >= 2
    assert "Warning" not in page, page


CELLS = """
import os, sys
print("one")
print("two", os.listdir())
print("I0000 00:00:17.5 8081 cudart_stub.cc:31] a log line", file=sys.stderr)
print("warned", file=sys.stderr)
---
from IPython.display import Markdown
Markdown("| a |\\n|---|\\n| **b** |")
---
1 + 1
"""


@pytest.mark.parametrize("execute_tutorials", ["true", "false"])
def test_pages_show_outputs_where_asked(execute_tutorials: str, tmp_path: Path) -> None:
    import nbformat

    new = nbformat.v4
    cells = [new.new_markdown_cell("# Title\n\nText.")]
    cells += [new.new_code_cell(each.strip()) for each in CELLS.split("---\n")]
    (tmp_path / "docs").mkdir()
    nbformat.write(new.new_notebook(cells=cells), tmp_path / "docs" / "small.ipynb")
    (tmp_path / "mkdocs.yml").write_text(
        f"site_name: small\nhooks: [{ROOT}/docs/notebooks.py]\n"
        "extra:\n  execute_tutorials: !ENV EXECUTE_TUTORIALS\n"
        "markdown_extensions: [tables, pymdownx.highlight, pymdownx.superfences]\n"
    )
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build"],
        cwd=tmp_path,
        env={**os.environ, "EXECUTE_TUTORIALS": execute_tutorials, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
        timeout=120,
    )
    page = (tmp_path / "site" / "small" / "index.html").read_text(encoding="utf-8")
    assert '<a href="../small.ipynb" download>' in page
    assert (tmp_path / "site" / "small.ipynb").is_file()
    blocks = re.findall(r'class="[^"]*output[^>]*>(.*?)</div>', page, re.S)
    printed = re.sub(r"<[^>]+>", "", "".join(blocks))
    if execute_tutorials == "false":
        assert "listdir" in page
        assert printed == ""
        assert "<strong>b" not in page
        return
    assert "one\ntwo []\n" in printed
    assert "warned" in printed
    assert "log line" not in printed
    assert "<td><strong>b</strong></td>" in page
    assert re.search(r"^2$", printed, re.M)
