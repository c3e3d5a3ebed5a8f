"""`encryip trace`: who leaked."""

import json
import os
from codecs import BOM_UTF8
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import keras_encryip as ke
from keras_encryip.cli.shared import (
    AsJson,
    AuthorityArgument,
    AuthorityPassphraseFile,
    BundlePassphraseFile,
    PrivateKeyFile,
    answer,
    ask_opening,
    check_new,
    check_present,
    hexadecimal,
    lines_of,
    open_decoder,
    opened_authority,
)
from keras_encryip.crypto.locked_weights import KEY_BYTES
from keras_encryip.errors import ArgumentError, needing
from keras_encryip.formats.atomic_files import read_bounded
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.responses import read_outputs
from keras_encryip.tracing.report import check_ending

if TYPE_CHECKING:
    from keras_encryip.authority.tracer import Tracer
    from keras_encryip.tracing.report import TraceReport

app = typer.Typer(help="Find out who leaked.", no_args_is_help=True)

TracedModel = Annotated[str, typer.Option("--model", help="Name of the protected model.")]
SaveReport = Annotated[
    list[Path] | None,
    typer.Option("--save", help="Where to save the report: .json or .png; repeatable."),
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
        typer.Argument(
            help="A key bundle, a key in hexadecimal, a locked export's key file (32 bytes), or a "
            "decode table (.npy)."
        ),
    ],
    model: Annotated[str | None, typer.Option(help="For a table: the model's name.")] = None,
    opened: Annotated[
        bool,
        typer.Option(
            "--open",
            help="A bundle's passphrase or private key leaked, too: open it, and ask for it.",
        ),
    ] = False,
    save: SaveReport = None,
    evidence: EvidenceFolder = None,
    authority_passphrase_file: AuthorityPassphraseFile = None,
    bundle_passphrase_file: BundlePassphraseFile = None,
    private_key: PrivateKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Name the user whose key bundle, key or decode table was found.

    A sealed bundle names its user, and proves nothing: others saw it on its way.
    """
    _check_targets(save, evidence)
    check_present(leaked, "key")
    with opened_authority(authority, authority_passphrase_file) as owner:
        tracer = ke.Tracer(owner)
        if leaked.suffix == ".npy":
            if model is None:
                raise ArgumentError("A decode table belongs to a model: name it with --model.")
            report = tracer.table(read_outputs(leaked), model=model)
        elif _is_armoured(leaked):
            bundle = KeyBundle.read(leaked)
            passphrase = key = None
            if opened or bundle_passphrase_file or private_key:
                passphrase, key = ask_opening(bundle, private_key, bundle_passphrase_file)
            report = tracer.bundle(bundle, passphrase, key)
        else:
            report = tracer.key(_read_key(leaked))
        _finish_trace(tracer, report, save, evidence, as_json)


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
    as_json: AsJson = False,
) -> None:
    """Name the user whose personalised copy the weights come from."""
    _check_targets(save, evidence)
    check_present(suspect, "suspect's weights")
    check_present(reference, "reference")
    with opened_authority(authority, authority_passphrase_file) as owner:
        tracer = ke.Tracer(owner)
        report = tracer.weights(suspect, model=model, reference=reference)
        _finish_trace(tracer, report, save, evidence, as_json)


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
    as_json: AsJson = False,
) -> None:
    """Name the user on whose key a service runs, from the labels it answers."""
    if (decode_model is None) != (bundle is None):
        raise ArgumentError("Decoding needs both --decode-model and --bundle.")
    _check_targets(save, evidence)
    decoder = None
    with opened_authority(authority, authority_passphrase_file) as owner:
        if decode_model is not None and bundle is not None:
            decoder = open_decoder(decode_model, bundle, private_key, bundle_passphrase_file)
        tracer = ke.Tracer(owner)
        report = tracer.service(
            url, model=model, decoder=decoder, transcript=transcript, batch_size=batch_size
        )
        _finish_trace(tracer, report, save, evidence, as_json)


def _check_targets(save: list[Path] | None, evidence: Path | None) -> None:
    """Before the trace, which may take hours."""
    check_new(evidence, *(save or []))
    for path in save or []:
        if check_ending(path) == ".png":
            with needing("plots"):
                import matplotlib  # noqa: F401
        if (save or []).count(path) > 1:
            raise ArgumentError(f"{str(path)!r} is named twice, and is never overwritten.")
        if not os.path.isdir(path.parent):
            raise ArgumentError(f"Cannot write {str(path)!r}: there is no such folder. Make it.")


def _finish_trace(
    tracer: "Tracer",
    report: "TraceReport",
    save: list[Path] | None,
    evidence: Path | None,
    as_json: bool,
) -> None:
    """Save first, so that nothing is lost if the terminal is; answer, though saving fails."""
    try:
        for path in save or []:
            report.save(path)
    finally:
        _answer(report, as_json)
    if evidence is not None:
        tracer.evidence(report, evidence)


def _answer(report: "TraceReport", as_json: bool) -> None:
    named = {"guilty": report.guilty, "identified": report.identified}
    facts = {
        "verdict": report.verdict,
        "p_value": report.p_value,
        **{kind: [suspect.subject for suspect in users] for kind, users in named.items()},
        **json.loads(report.to_bytes()),
    }
    answer(facts, as_json=as_json, show=lambda: typer.echo(str(report)))


def _is_armoured(path: Path) -> bool:
    """Whether it looks like a key bundle, be it one that an editor changed."""
    data = read_bounded(path, what="key", max_bytes=1 << 20)
    return data.removeprefix(BOM_UTF8).startswith(b"-----")


def _read_key(path: Path) -> bytes:
    if len(data := read_bounded(path, what="key", max_bytes=4096)) == KEY_BYTES:
        return data
    return hexadecimal("".join(lines_of(path, "key")), 64, str(path))
