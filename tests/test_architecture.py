"""The rooms of the house, and the arrows between them: what each file may import."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import keras_encryip

PACKAGE = Path(keras_encryip.__file__).parent

# Room → the rooms right below it; a room may import whatever can be reached from there.
BELOW: dict[str, set[str]] = {
    "crypto": set(),
    "labels": {"crypto"},
    "formats": {"labels"},
    "client": {"formats"},
    "tracing": {"client"},
    "models": {"client"},
    "authority": {"tracing"},
    "export": {"models", "authority"},
    "cli": {"export"},
}
# What every file may import, and the files that stand beside the rooms.
GROUND = {"errors"}
BESIDE = {"__init__", "__main__", "errors", "registration"}

LIGHT_FILES = {"keras_encryip.errors", "keras_encryip.registration", "keras_encryip.cli"}

LIGHT = {"numpy", "msgspec", "Crypto"}
LIBRARIES = {
    "crypto": LIGHT,
    "labels": LIGHT,
    "formats": LIGHT | {"rich"},
    "client": LIGHT,
    "tracing": LIGHT | {"rich", "scipy", "h5py", "matplotlib"},
    "models": LIGHT | {"keras", "sklearn", "scipy", "tensorflow", "threadpoolctl"},
    "authority": LIGHT | {"sqlalchemy"},
    "export": LIGHT | {"keras", "tensorflow"},
    "cli": LIGHT | {"keras", "tensorflow", "sklearn", "matplotlib", "rich", "typer"},
}
# Imported inside a function, when they are needed and not before.
WHEN_NEEDED = {
    "client/serving/rest.py": {"httpx"},
    "client/serving/grpc.py": {"grpc", "tensorflow_serving"},
    "export/warmup.py": {"tensorflow_serving"},
    "tracing/weights.py": {"tensorflow", "h5py"},
    "tracing/checkpoint.py": {"tensorflow"},
    "tracing/report.py": {"matplotlib"},
    "models/trace_inputs.py": {"tensorflow"},
    "models/homophones.py": {"sklearn"},
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def reachable(room: str) -> set[str]:
    rooms = {room}
    for below in BELOW[room]:
        rooms |= reachable(below)
    return rooms


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Every module that is imported, and whether that happens when the file is loaded."""
    late: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            late |= set(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node not in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            assert node.module is not None
            if node.module == "keras_encryip":
                yield from ((f"keras_encryip.{a.name}", node not in late) for a in node.names)
            else:
                yield node.module, node not in late


def of(path: Path) -> list[tuple[str, bool]]:
    return list(imports(ast.parse(path.read_text(encoding="utf-8"))))


def test_the_rooms_are_the_ones_that_are_drawn() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(BELOW)
    assert {path.stem for path in PACKAGE.glob("*.py")} == BESIDE


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_arrows_point_down(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    libraries = LIBRARIES[room]
    when_needed = WHEN_NEEDED.get(path.relative_to(PACKAGE).as_posix(), set())
    for name, at_once in of(path):
        top, _, rest = name.partition(".")
        if top != "keras_encryip":
            allowed = (libraries - when_needed) if at_once else (libraries | when_needed)
            assert top in allowed or top in sys.stdlib_module_names, name
        elif rest or room != "cli":  # the command line may use the package as its users do
            assert rest.split(".")[0] in reachable(room) | GROUND, name


def test_files_of_the_package_itself_import_nothing_heavy() -> None:
    for path in PACKAGE.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        checked = [node for node in tree.body if "TYPE_CHECKING" not in ast.unparse(node)[:20]]
        for name, _ in imports(ast.Module(checked, [])):
            top = name.partition(".")[0]
            assert name in LIGHT_FILES or top in sys.stdlib_module_names, name


def test_no_two_files_import_each_other() -> None:
    """Not even in a circle, and not under TYPE_CHECKING."""
    edges: dict[str, set[str]] = {}
    for path in FILES:
        module = ".".join(("keras_encryip", *path.relative_to(PACKAGE).with_suffix("").parts))
        names = {name for name, _ in of(path)}
        edges[module.removesuffix(".__init__")] = names - {module.removesuffix(".__init__")}

    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join((*path, module))
        if module in done:
            return
        for other in sorted(edges.get(module, ())):
            visit(other, (*path, module))
        done.add(module)

    for module in edges:
        visit(module, ())


@pytest.mark.parametrize(
    ("rooms", "forbidden"),
    [
        ({"models", "tracing"}, {"sqlalchemy"}),
        (
            {"crypto", "labels", "formats", "client"},
            {"tensorflow", "keras", "sqlalchemy", "sklearn", "scipy"},
        ),
    ],
)
def test_what_rooms_never_import(rooms: set[str], forbidden: set[str]) -> None:
    for path in FILES:
        if path.relative_to(PACKAGE).parts[0] in rooms:
            assert not {name.partition(".")[0] for name, _ in of(path)} & forbidden, path


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_functions_are_short_and_names_are_nouns(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            if ast.get_docstring(node) is not None and len(node.body) > 1:
                first = node.body[1]
            assert (node.end_lineno or 0) - first.lineno < 60, node.name
        name = node.id if isinstance(node, ast.Name) else getattr(node, "arg", None)
        assert name not in {"found", "own", "made"}, f"line {getattr(node, 'lineno', 0)}: {name}"


def test_nobody_inherits_from_the_authority_or_reaches_into_it() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                assert "Authority" not in {ast.unparse(base) for base in node.bases}, path
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                owner = ast.unparse(node.value).rpartition(".")[2]
                assert owner not in {"authority", "owner"} or node.attr.startswith("__"), path


def test_strategies_are_compared_nowhere_else() -> None:
    """Their names stand in the table, and as a default."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                words = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                assert not words & {"clustered", "random"}, f"{path}: {ast.unparse(node)}"
