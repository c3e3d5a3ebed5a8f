"""`encryip trace`: who leaked."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keras_encryip.cli.shared import AuthorityArgument, AuthorityPassphraseFile, BundlePassphraseFile, PrivateKeyFile, UseKeyring, ask_opening, ask_passphrase, database_url, hexadecimal, read_text
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.client.decoder import Decoder
from keras_encryip.formats.atomic_files import read_bounded
from keras_encryip.formats.responses import read_outputs
from keras_encryip.errors import ArgumentError

if TYPE_CHECKING:
    from keras_encryip.authority import Authority
    from keras_encryip.tracing.report import TraceReport

app = typer.Typer(help="Find out who leaked.", no_args_is_help=True)

TracedModel = Annotated[str, typer.Option("--model", help="Name of the protected model.")]
SaveReport = Annotated[
    list[Path] | None,
    typer.Option("--save", help="Where to save the report: .json, .png, .svg, .pdf; repeatable."),
]
EvidenceFolder = Annotated[
    Path | None,
    typer.Option("--evidence", help="New folder that others can check with verify-evidence."),
]


@app.command("key")
def trace_key(
    authority: AuthorityArgument,
    leaked: Annotated[
        Path,
        typer.Argument(help="A key bundle, a key in hexadecimal, or a decode table (.npy)."),
    ],
    model: Annotated[str | None, typer.Option(help="For a table: the model's name.")] = None,
    save: SaveReport = None,
    evidence: EvidenceFolder = None,
    authority_passphrase_file: AuthorityPassphraseFile = None,
) -> None:
    """Name the user whose key bundle, key or decode table was found."""
    from keras_encryip.authority import Authority

    passphrase = ask_passphrase(authority_passphrase_file, "authority", "AUTHORITY")
    with Authority.open(database_url(authority), passphrase) as opened:
        if leaked.suffix == ".npy":
            if model is None:
                raise ArgumentError("A decode table belongs to a model: name it with --model.")
            report = opened.trace_table(read_outputs(leaked), model=model)
        elif read_bounded(leaked, what="key", max_bytes=1 << 20).startswith(b"-----"):
            report = opened.trace_bundle(leaked)
        else:
            report = opened.trace_key(_read_key(leaked))
        _finish_trace(opened, report, save, evidence)


@app.command("weights")
def trace_weights(
    authority: AuthorityArgument,
    suspect: Annotated[Path, typer.Argument(help="A SavedModel folder, .keras, .h5 or .npz file.")],
    model: TracedModel,
    reference: Annotated[
        Path | None, typer.Option(help="The original, as .keras; without it tracing is blind.")
    ] = None,
    save: SaveReport = None,
    evidence: EvidenceFolder = None,
    authority_passphrase_file: AuthorityPassphraseFile = None,
) -> None:
    """Name the user whose personalised copy the weights come from."""
    from keras_encryip.authority import Authority

    passphrase = ask_passphrase(authority_passphrase_file, "authority", "AUTHORITY")
    with Authority.open(database_url(authority), passphrase) as opened:
        report = opened.trace_weights(suspect, model=model, reference=reference)
        _finish_trace(opened, report, save, evidence)


@app.command("service")
def trace_service(
    authority: AuthorityArgument,
    url: Annotated[str, typer.Argument(help="A model at TF Serving's REST API.")],
    model: TracedModel,
    decode_model: Annotated[
        Path | None,
        typer.Option(help="If it answers in confused labels: an exported folder or codebook."),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="The key bundle to decode these with.")
    ] = None,
    transcript: Annotated[
        Path | None, typer.Option(help="Keeps the answers, so that the run can go on.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Inputs per request.")] = 16,
    save: SaveReport = None,
    evidence: EvidenceFolder = None,
    authority_passphrase_file: AuthorityPassphraseFile = None,
    bundle_passphrase_file: BundlePassphraseFile = None,
    private_key: PrivateKeyFile = None,
    keyring: UseKeyring = False,
) -> None:
    """Name the user on whose key a service runs, from the labels it answers."""
    from keras_encryip.authority import Authority

    if (decode_model is None) != (bundle is None):
        raise ArgumentError("Decoding needs both --decode-model and --bundle.")
    passphrase = ask_passphrase(authority_passphrase_file, "authority", "AUTHORITY")
    decoder = None
    if decode_model is not None and bundle is not None:
        own = KeyBundle.read(bundle)
        opening = ask_opening(own, private_key, bundle_passphrase_file, keyring)
        decoder = Decoder.open(decode_model, own, *opening)
    with Authority.open(database_url(authority), passphrase) as opened:
        report = opened.trace_service(
            url, model=model, decoder=decoder, transcript=transcript, batch_size=batch_size
        )
        _finish_trace(opened, report, save, evidence)


def _finish_trace(
    authority: "Authority", report: "TraceReport", save: list[Path] | None, evidence: Path | None
) -> None:
    """Save first, so that nothing is lost if the terminal is."""
    for path in save or []:
        report.save(path)
    if evidence is not None:
        authority.evidence(report, evidence)
    typer.echo(str(report))


def _read_key(path: Path) -> bytes:
    return hexadecimal(read_text(path, "key").strip(), 64, str(path))
