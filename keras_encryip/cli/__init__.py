"""The `encryip` command: a thin layer over the library.

Results go to stdout, errors to stderr with exit code 1. Passphrases come from a
prompt, a file or the environment, never from the command line.
"""

import sys

import typer

from keras_encryip.cli import client, owner, trace
from keras_encryip.errors import EncryipError

app = typer.Typer(
    help="Protect Keras classifiers, issue keys, decode predictions.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(owner.demo)
app.add_typer(owner.authority_app, name="authority")
owner.key_app.command("new")(client.key_new)
app.add_typer(owner.key_app, name="key")
app.command()(owner.export)
app.command()(owner.rotate)
app.command()(owner.seal)
app.add_typer(trace.app, name="trace")
app.command("verify-evidence")(client.verify_evidence_command)
app.command()(client.inspect)
app.command()(client.verify)
app.command()(client.unlock)
app.command()(client.unseal)
app.command()(client.decode)


def main() -> None:
    """Entry point of the `encryip` command."""
    try:
        app()
    except EncryipError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        # The owner's commands need more than the light client.
        if error.name not in ("tensorflow", "keras", "sklearn", "sqlalchemy", "matplotlib"):
            raise
        typer.echo(
            f"Error: this command needs {error.name!r}. "
            "Install it with: pip install 'keras_encryip[owner,plots]'",
            err=True,
        )
        sys.exit(1)
