"""docs/architecture.md names modules and functions that exist, and leaves no module out."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "keras_encryip"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
QUOTED = set(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", PAGE, flags=re.M | re.S)))
PATHS = sorted(text for text in QUOTED if re.fullmatch(r"[\w/]+(/|\.py)", text))
NAMES = sorted(
    text for text in QUOTED if re.fullmatch(r"\w+(\.\w+){1,2}", text) and text not in PATHS
)


def modules() -> Iterator[Path]:
    return (path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


@cache
def files_named(module: str) -> list[Path]:
    """Modules and packages of that name, in the package and in the benchmarks."""
    return [
        path
        for folder in (PACKAGE, ROOT / "benchmarks")
        for path in folder.rglob("*.py")
        if module == (path.parent.name if path.name == "__init__.py" else path.stem)
    ]


@cache
def defined(path: Path) -> set[str]:
    """Functions, classes, their methods and attributes, and constants: `f`, `C`, `C.m`, `X`."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names |= set(_names(node))
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{name}" for inner in node.body for name in _names(inner)}
    return names


def _names(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    yield from (target.id for target in targets if isinstance(target, ast.Name))


def test_the_page_is_read() -> None:
    assert len(PATHS) > 50
    assert len(NAMES) > 50


@pytest.mark.parametrize("path", PATHS)
def test_path_exists(path: str) -> None:
    assert any((folder / path).exists() for folder in (PACKAGE, ROOT)), path


@pytest.mark.parametrize("name", NAMES)
def test_name_exists(name: str) -> None:
    module, _, inner = name.partition(".")
    assert any(inner in defined(path) for path in files_named(module)), name


def test_no_module_is_left_out() -> None:
    every = {path.relative_to(PACKAGE).as_posix() for path in modules()}
    assert every - set(PATHS) == set()


def test_every_room_is_in_the_picture() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))}
    picture = re.search(r"```mermaid\n(.*?)```", PAGE, re.S)
    assert picture is not None
    assert rooms <= set(re.findall(r"<b>(\w+)</b>", picture[1]))
