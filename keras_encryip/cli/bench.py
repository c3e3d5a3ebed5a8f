"""`encryip bench`: what the protection is worth, measured by the repository's benchmarks."""

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from keras_encryip.errors import ArgumentError

app = typer.Typer(help="Measure what the protection is worth.", no_args_is_help=True)


@app.command("quick")
def bench_quick() -> None:
    """Digits, in minutes; results under benchmarks/results/quick."""
    _benchmarks().main("quick")


@app.command("nightly")
def bench_nightly(
    suite: Annotated[list[str] | None, typer.Option(help="ladder, grid, …; repeatable.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="mnist or cifar10; repeatable.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Fewer seeds; repeatable.")] = None,
) -> None:
    """All suites on MNIST and CIFAR-10, through TFDS (TFDS_DATA_DIR), a night long; resumable."""
    _benchmarks().main("nightly", suite, data, seed)


@app.command("report")
def bench_report(
    quick: Annotated[bool, typer.Option("--quick", help="Of the quick run.")] = False,
) -> None:
    """Write docs/benchmarks.md and its figures from the results that exist."""
    typer.echo(_benchmarks().report("quick" if quick else "nightly"))


def _benchmarks() -> Any:
    """The benchmarks' main module, which lies in the repository beside this package."""
    root = Path(__file__).parents[2]
    if not (root / "benchmarks" / "main.py").exists():
        raise ArgumentError(
            "The benchmarks are not part of the installed package: clone the repository and "
            "install it from there with pip install -e '.[all]'."
        )
    if str(root) not in sys.path:
        sys.path.append(str(root))
    return importlib.import_module("benchmarks.main")
