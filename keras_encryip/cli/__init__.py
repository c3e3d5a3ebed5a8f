"""The `encryip` command: a thin layer over the library.

Results go to stdout, errors to stderr with exit code 1. Passphrases come from a
prompt, a file or the environment, never from the command line.
"""

import contextlib
import io
import os
import signal
import sys

_INTERRUPTED = 130  # as shells say


def main() -> None:
    """Entry point of the `encryip` command."""
    interrupted: list[int] = []

    def interrupt(number: int, _: object) -> None:
        interrupted.append(number)
        sys.exit(_INTERRUPTED)

    # Before anything is imported, which takes seconds: Ctrl-C ends quietly wherever it falls.
    signal.signal(signal.SIGINT, interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names may have letters that the terminal's or the pipe's encoding has not.
        sys.stdout.reconfigure(errors="backslashreplace")
    import typer

    from keras_encryip.errors import EncryipError, printable, reason

    try:
        from keras_encryip.cli.app import app

        app()
    except EncryipError as error:
        if interrupted:
            sys.exit(_INTERRUPTED)
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except OSError as error:  # a full disk under the standard output, for instance
        if interrupted:
            sys.exit(_INTERRUPTED)
        typer.echo(f"Error: {printable(reason(error)).rstrip('.')}.", err=True)
        with contextlib.suppress(OSError):  # or Python writes what is left, and fails, at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except BaseException:
        if interrupted:  # what a library made of the interruption
            sys.exit(_INTERRUPTED)
        raise
