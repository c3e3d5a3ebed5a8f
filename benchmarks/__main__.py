"""`python -m benchmarks`: what the protection is worth, measured."""

import sys
from typing import Annotated

import typer

from keras_encryip.errors import EncryipError

app = typer.Typer(
    help="Measure what the protection is worth.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command("quick")
def run_quick() -> None:
    """Digits, in minutes; results under benchmarks/results/quick."""
    from . import main  # TensorFlow takes seconds: not for --help

    main.main("quick")


@app.command("nightly")
def run_nightly(
    suite: Annotated[list[str] | None, typer.Option(help="ladder, grid, …; repeatable.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="mnist or cifar10; repeatable.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Fewer seeds; repeatable.")] = None,
) -> None:
    """All suites on MNIST and CIFAR-10, through TFDS (TFDS_DATA_DIR), a night long; resumable."""
    from . import main

    main.main("nightly", suite, data, seed)


@app.command("coalitions")
def run_coalitions() -> None:
    """What traitors who compare their keys can do, and what innocents risk; nothing is trained."""
    from . import coalitions

    coalitions.main()


@app.command("report")
def write_report(
    quick: Annotated[bool, typer.Option("--quick", help="Of the quick run.")] = False,
) -> None:
    """Write docs/evidence/benchmarks.md and its figures from the results that exist."""
    from . import main

    typer.echo(main.report("quick" if quick else "nightly"))


if __name__ == "__main__":
    try:
        app(prog_name="python -m benchmarks")
    except EncryipError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)
