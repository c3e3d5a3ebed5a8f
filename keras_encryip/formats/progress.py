"""Progress on a terminal; nothing where standard error is a file or a pipe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from keras_encryip.errors import printable


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error that vanishes at the end; gives a function to advance it."""
    from rich.console import Console  # not at the import of the light client
    from rich.progress import Progress, TextColumn

    console = Console(stderr=True)
    title = TextColumn("{task.description}", style="progress.description", markup=False)
    columns = (title, *Progress.get_default_columns()[1:])
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(printable(description), total=total)
        yield lambda amount: progress.update(task, advance=amount)
