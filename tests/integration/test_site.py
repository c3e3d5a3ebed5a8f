"""The site is built from docs/, README and the docstrings, without a warning."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    pages = [each for end in ("md", "ipynb") for each in (ROOT / "docs").rglob(f"*.{end}")]
    assert len(pages) > 20
    for page in pages:
        assert (site / page.relative_to(ROOT / "docs").with_suffix("") / "index.html").is_file()


def test_readme_is_the_start(site: Path) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="guides/owner/"' in start
    assert 'src="figures/roles.png"' in start


@pytest.mark.parametrize(
    ("page", "name"), [("owner", "protect"), ("owner", "Authority.revoke"), ("client", "Decoder")]
)
def test_docstrings_are_the_reference(site: Path, page: str, name: str) -> None:
    html = (site / "reference" / page / "index.html").read_text(encoding="utf-8")
    package = "keras_encryip.client" if page == "client" else "keras_encryip"
    assert f'id="{package}.{name}"' in html
    assert '<span class="gp">&gt;&gt;&gt; </span>' in html  # a doctest, as a block of code
