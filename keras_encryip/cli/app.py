"""The commands of `encryip`."""

from typing import Annotated

import typer

import keras_encryip as ke
import keras_encryip.cli.client as client
import keras_encryip.cli.owner as owner
import keras_encryip.cli.serve as serve
import keras_encryip.cli.trace as trace

_EXIT_CODES = (
    "Exit codes: 0 done; 1 an error, in one line on standard error; 2 wrong usage; 130 interrupted "
    "by Ctrl-C. Nothing else is used: 128 + N is of the shell, after signal N."
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=_EXIT_CODES,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"keras_encryip {ke.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Protect Keras classifiers, issue keys, decode predictions."""


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
app.command("serve")(serve.serve_command)
