"""The `encryip` command: a thin layer over the library.

Results go to stdout, errors to stderr with exit code 1. Passphrases come from a
prompt, a file or the environment, never from the command line.
"""

import contextlib
import importlib
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from keras_encryip.client.bundle import KeyBundle
from keras_encryip.client.decoder import Decoder, read_codebook
from keras_encryip.client.files import read_bounded
from keras_encryip.client.manifest import verify_export
from keras_encryip.client.responses import parse_response, read_outputs
from keras_encryip.errors import ArgumentError, EncryipError
from keras_encryip.tracing.evidence import verify_evidence

if TYPE_CHECKING:
    from keras_encryip.owner import Authority
    from keras_encryip.tracing.report import TraceReport

app = typer.Typer(
    help="Protect Keras classifiers, issue keys, decode predictions.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
authority_app = typer.Typer(help="The owner's secrets and ledger.", no_args_is_help=True)
key_app = typer.Typer(help="Users' keys.", no_args_is_help=True)
app.add_typer(authority_app, name="authority")
trace_app = typer.Typer(help="Find out who leaked.", no_args_is_help=True)
app.add_typer(key_app, name="key")
app.add_typer(trace_app, name="trace")
bench_app = typer.Typer(help="Measure what the protection is worth.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

AuthorityArgument = Annotated[
    str, typer.Argument(help="The authority's file, or a database URL.", metavar="AUTHORITY")
]
AuthorityPassphraseFile = Annotated[
    Path | None,
    typer.Option(
        help="File whose first line is the authority's passphrase.",
        envvar="ENCRYIP_AUTHORITY_PASSPHRASE_FILE",
    ),
]
BundlePassphraseFile = Annotated[
    Path | None,
    typer.Option(
        help="File whose first line is the key bundle's passphrase.",
        envvar="ENCRYIP_BUNDLE_PASSPHRASE_FILE",
    ),
]
TracedModel = Annotated[str, typer.Option("--model", help="Name of the protected model.")]
SaveReport = Annotated[
    list[Path] | None,
    typer.Option("--save", help="Where to save the report: .json, .png, .svg, .pdf; repeatable."),
]
EvidenceFolder = Annotated[
    Path | None,
    typer.Option("--evidence", help="New folder that others can check with verify-evidence."),
]


class What(StrEnum):
    """What `decode` prints."""

    names = "names"
    labels = "labels"
    probabilities = "probabilities"


@app.command()
def demo(
    directory: Annotated[
        Path, typer.Option(help="New folder for everything the demo makes.")
    ] = Path("encryip-demo"),
) -> None:
    """Protect, train, export, issue keys and decode, on embedded data."""
    from keras_encryip.demo import run_demo

    run_demo(directory, Console())


@authority_app.command("create")
def authority_create(
    authority: AuthorityArgument,
    threshold: Annotated[int, typer.Option(help="How many users can be revoked, 1 … 64.")] = 4,
    name: Annotated[str | None, typer.Option(help="Shown to users in their bundles.")] = None,
    authority_passphrase_file: AuthorityPassphraseFile = None,
) -> None:
    """Draw new secrets and write them, sealed, into a new file."""
    from keras_encryip.owner import Authority

    passphrase = _passphrase(authority_passphrase_file, "authority", "AUTHORITY", new=True)
    with Authority.create(_url(authority), passphrase, threshold=threshold, name=name) as made:
        typer.echo(f"Created {authority}, public key {made.public_key.digest.hex()[:16]}.")


@authority_app.command("info")
def authority_info(
    authority: AuthorityArgument, authority_passphrase_file: AuthorityPassphraseFile = None
) -> None:
    """Check an authority's file, and show its public facts and its log."""
    from keras_encryip.owner import Authority

    passphrase = _passphrase(authority_passphrase_file, "authority", "AUTHORITY")
    with Authority.open(_url(authority), passphrase) as opened:
        users = opened.users()
        revoked = sum(user.status == "revoked" for user in users)
        _print_facts(
            {
                "name": opened.name,
                "public key": opened.public_key.digest.hex(),
                "issuer": opened.issuer.hex(),
                "users": f"{len(users)}, {revoked} of at most {opened.threshold} revoked",
                "models": ", ".join(opened.models()) or "none",
            }
        )
        table = Table("", "when (UTC)", "what", "details")
        for event in opened.events():
            details = ", ".join(f"{k}={v}" for k, v in event.details.items())
            table.add_row(str(event.number), event.at, event.kind, details)
        Console().print(table)


@key_app.command("issue")
def key_issue(
    authority: AuthorityArgument,
    subject: Annotated[str, typer.Argument(help="Who gets the key.")],
    out: Annotated[Path | None, typer.Option(help="Default: SUBJECT.keybundle.")] = None,
    days: Annotated[float, typer.Option(help="Until the bundle expires.")] = 365,
    model: Annotated[
        list[str] | None, typer.Option(help="Model it is meant for; repeatable; default any.")
    ] = None,
    authority_passphrase_file: AuthorityPassphraseFile = None,
    bundle_passphrase_file: BundlePassphraseFile = None,
) -> None:
    """Issue a key and write its bundle."""
    from keras_encryip.owner import Authority

    passphrase = _passphrase(authority_passphrase_file, "authority", "AUTHORITY")
    path = out or Path(f"{subject}.keybundle")
    with Authority.open(_url(authority), passphrase) as opened:
        bundle_passphrase = _passphrase(bundle_passphrase_file, "new bundle", "BUNDLE", new=True)
        user = opened.issue(subject, path, passphrase=bundle_passphrase, days=days, models=model)
    typer.echo(f"Wrote {path}, key {user.key_id}, valid to {user.not_after}.")


@key_app.command("revoke")
def key_revoke(
    authority: AuthorityArgument,
    subject: str,
    authority_passphrase_file: AuthorityPassphraseFile = None,
) -> None:
    """Shut a user out of every later export."""
    from keras_encryip.owner import Authority

    passphrase = _passphrase(authority_passphrase_file, "authority", "AUTHORITY")
    with Authority.open(_url(authority), passphrase) as opened:
        user = opened.revoke(subject)
    typer.echo(f"Revoked {subject} ({user.key_id}). Export again to shut the key out.")


@key_app.command("list")
def key_list(
    authority: AuthorityArgument, authority_passphrase_file: AuthorityPassphraseFile = None
) -> None:
    """List the users and their keys."""
    from keras_encryip.owner import Authority

    passphrase = _passphrase(authority_passphrase_file, "authority", "AUTHORITY")
    with Authority.open(_url(authority), passphrase) as opened:
        table = Table("subject", "key", "status", "models", "issued", "expires")
        for user in opened.users():
            table.add_row(
                user.subject,
                user.key_id,
                user.status,
                ", ".join(user.scope),
                user.issued_at[:10],
                user.not_after[:10],
            )
    Console().print(table)


@key_app.command("inspect")
def key_inspect(bundle: Path) -> None:
    """Show what a key bundle says in the clear, its signature checked."""
    header = KeyBundle.read(bundle).header
    _print_facts({field: getattr(header, field) for field in header.__struct_fields__})


@key_app.command("enroll")
def key_enroll(
    authority: AuthorityArgument,
    subjects: Annotated[Path, typer.Argument(help="A text file with one name a line.")],
    authority_passphrase_file: AuthorityPassphraseFile = None,
) -> None:
    """Draw keys for many users at once; `issue` writes a user's bundle when it is wanted."""
    from keras_encryip.owner import Authority

    names = [
        line.strip()
        for line in _read_text(subjects, "list of names", max_bytes=1 << 28).splitlines()
    ]
    passphrase = _passphrase(authority_passphrase_file, "authority", "AUTHORITY")
    with Authority.open(_url(authority), passphrase) as opened:
        users = opened.enroll(name for name in names if name)
    typer.echo(f"Enrolled {len(users)} users.")


@app.command()
def export(
    authority: AuthorityArgument,
    model: Annotated[Path, typer.Argument(help="A protected model saved as `.keras`.")],
    directory: Annotated[Path, typer.Argument(help="New version folder, e.g. served/digits/2.")],
    recipient: Annotated[
        str | None, typer.Option(help="User whose mark the weights of this copy carry.")
    ] = None,
    authority_passphrase_file: AuthorityPassphraseFile = None,
) -> None:
    """Export a saved protected model for TF Serving, under today's revocations."""
    import keras

    from keras_encryip.export import export_saved_model
    from keras_encryip.models import ProtectedModel
    from keras_encryip.owner import Authority

    passphrase = _passphrase(authority_passphrase_file, "authority", "AUTHORITY")
    with Authority.open(_url(authority), passphrase) as opened:
        try:
            loaded = keras.models.load_model(model)
        except (ValueError, OSError, TypeError) as error:
            raise ArgumentError(f"Cannot load {str(model)!r}: {error}") from None
        if not isinstance(loaded, ProtectedModel):
            raise ArgumentError(f"{str(model)!r} is not a protected model.")
        export_saved_model(loaded.unlock(authority=opened), directory, recipient=recipient)
    typer.echo(f"Exported {directory}.")


@trace_app.command("key")
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
    from keras_encryip.owner import Authority

    passphrase = _passphrase(authority_passphrase_file, "authority", "AUTHORITY")
    with Authority.open(_url(authority), passphrase) as opened:
        if leaked.suffix == ".npy":
            if model is None:
                raise ArgumentError("A decode table belongs to a model: name it with --model.")
            report = opened.trace_table(read_outputs(leaked), model=model)
        elif read_bounded(leaked, what="key", max_bytes=1 << 20).startswith(b"-----"):
            report = opened.trace_bundle(leaked)
        else:
            report = opened.trace_key(_read_key(leaked))
        _finish_trace(opened, report, save, evidence)


@trace_app.command("weights")
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
    from keras_encryip.owner import Authority

    passphrase = _passphrase(authority_passphrase_file, "authority", "AUTHORITY")
    with Authority.open(_url(authority), passphrase) as opened:
        report = opened.trace_weights(suspect, model=model, reference=reference)
        _finish_trace(opened, report, save, evidence)


@trace_app.command("service")
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
) -> None:
    """Name the user on whose key a service runs, from the labels it answers."""
    from keras_encryip.owner import Authority

    if (decode_model is None) != (bundle is None):
        raise ArgumentError("Decoding needs both --decode-model and --bundle.")
    passphrase = _passphrase(authority_passphrase_file, "authority", "AUTHORITY")
    decoder = None
    if decode_model is not None and bundle is not None:
        own = _passphrase(bundle_passphrase_file, "key bundle", "BUNDLE")
        decoder = Decoder.open(decode_model, bundle, own)
    with Authority.open(_url(authority), passphrase) as opened:
        report = opened.trace_service(
            url, model=model, decoder=decoder, transcript=transcript, batch_size=batch_size
        )
        _finish_trace(opened, report, save, evidence)


@app.command("verify-evidence")
def verify_evidence_command(
    directory: Path,
    bundle: Annotated[Path | None, typer.Option(help="Key bundle whose issuer must match.")] = None,
    issuer: Annotated[str | None, typer.Option(help="Or the issuer's key in hexadecimal.")] = None,
) -> None:
    """Check a trace that an owner wrote as evidence; needs no key and no TensorFlow."""
    expected = KeyBundle.read(bundle).issuer if bundle else None
    if issuer is not None:
        expected = _hexadecimal(issuer, 32, "--issuer")
    verified = verify_evidence(directory, issuer=expected)
    for subject, p_value in verified.p_values.items():
        typer.echo(
            f"guilty: {subject}, {verified.kind}, p = {p_value:.1e} among {verified.tests:,} tested"
        )
    typer.echo(f"committed since {verified.committed}; signed by {verified.issuer}")
    if expected is None:
        typer.echo("Nobody was named who must have signed: pass --bundle or --issuer.")


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="An exported folder, or a codebook.json.")],
) -> None:
    """Show what a model's codebook says in public."""
    codebook = read_codebook(model)
    codebook.verify(codebook.issuer)
    _print_facts(
        {
            "codebook": codebook.codebook_id.hex(),
            "authority": codebook.authority.hex(),
            "issuer": codebook.issuer.hex(),
            "classes": codebook.num_classes,
            "confused labels": codebook.num_labels,
            "blocks": len(codebook.headers),
            "threshold": codebook.access_header.threshold,
        }
    )


@app.command()
def verify(
    directory: Path,
    bundle: Annotated[Path | None, typer.Option(help="Key bundle whose issuer must match.")] = None,
) -> None:
    """Check that an exported folder is whole and unchanged, and who signed it."""
    issuer = KeyBundle.read(bundle).issuer if bundle else None
    manifest = verify_export(directory, issuer=issuer)
    trust = (
        "signed by the issuer of your key bundle"
        if bundle
        else "signed by the key it names itself; pass --bundle to check whose that is"
    )
    typer.echo(f"{directory}: {len(manifest.files)} files, whole and unchanged, {trust}.")


@app.command()
def decode(
    model: Annotated[Path, typer.Argument(help="An exported folder, or a codebook.json.")],
    bundle: Path,
    outputs: Annotated[
        str, typer.Argument(help="A .npy or .csv file; - for TF Serving's JSON on stdin.")
    ] = "-",
    what: Annotated[What, typer.Option(help="What to print, one prediction a line.")] = What.names,
    bundle_passphrase_file: BundlePassphraseFile = None,
) -> None:
    """Decode a protected model's outputs with a key bundle. Needs no TensorFlow."""
    passphrase = _passphrase(bundle_passphrase_file, "key bundle", "BUNDLE")
    decoder = Decoder.open(model, bundle, passphrase)
    found = parse_response(sys.stdin.buffer.read()) if outputs == "-" else read_outputs(outputs)
    if isinstance(found, list):
        if what is What.probabilities:
            raise ArgumentError("Label ciphertexts hold one label each, and no probabilities.")
        classes = decoder.decrypt(found)
    elif what is What.probabilities:
        for row in decoder.probabilities(found).reshape(-1, len(decoder.class_names)):
            typer.echo(",".join(f"{value:.6g}" for value in row))
        return
    else:
        classes = decoder.labels(found).reshape(-1)
    for label in classes:
        typer.echo(decoder.class_names[label] if what is What.names else str(label))


@bench_app.command("quick")
def bench_quick() -> None:
    """Digits, in minutes, without the grid; results under benchmarks/results/quick."""
    _benchmarks().main("quick")


@bench_app.command("nightly")
def bench_nightly(
    suite: Annotated[list[str] | None, typer.Option(help="ladder, grid, …; repeatable.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="mnist or cifar10; repeatable.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Fewer seeds; repeatable.")] = None,
) -> None:
    """All suites on MNIST and CIFAR-10, through TFDS (TFDS_DATA_DIR), a night long; resumable."""
    _benchmarks().main("nightly", suite, data, seed)


@bench_app.command("report")
def bench_report(
    quick: Annotated[bool, typer.Option("--quick", help="Of the quick run.")] = False,
) -> None:
    """Write docs/benchmarks.md and its figures from the results that exist."""
    typer.echo(_benchmarks().report("quick" if quick else "nightly"))


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


def _benchmarks() -> Any:
    """The benchmarks' main module, which lies in the repository beside this package."""
    root = Path(__file__).parents[1]
    if not (root / "benchmarks" / "main.py").exists():
        raise ArgumentError(
            "The benchmarks are not part of the installed package: clone the repository and "
            "install it from there with pip install -e '.[all]'."
        )
    if str(root) not in sys.path:
        sys.path.append(str(root))
    return importlib.import_module("benchmarks.main")


def _finish_trace(
    authority: "Authority", report: "TraceReport", save: list[Path] | None, evidence: Path | None
) -> None:
    """Save first, so that nothing is lost if the terminal is."""
    for path in save or []:
        report.save(path)
    if evidence is not None:
        authority.evidence(report, evidence)
    typer.echo(str(report))


def _read_text(path: Path, what: str, *, max_bytes: int = 4096) -> str:
    data = read_bounded(path, what=what, max_bytes=max_bytes)
    with contextlib.suppress(UnicodeDecodeError):
        return data.decode("utf-8")
    raise ArgumentError(f"The {what} {str(path)!r} is not UTF-8 text.")


def _read_key(path: Path) -> bytes:
    return _hexadecimal(_read_text(path, "key").strip(), 64, str(path))


def _hexadecimal(text: str, length: int, what: str) -> bytes:
    data = b""
    with contextlib.suppress(ValueError):
        data = bytes.fromhex(text)
    if len(data) != length:
        raise ArgumentError(f"{what} must be {2 * length} hexadecimal digits.")
    return data


def _url(authority: str) -> str:
    return authority if "://" in authority else f"sqlite:///{authority}"


def _passphrase(file: Path | None, what: str, variable: str, *, new: bool = False) -> str:
    """From a file's first line, else `ENCRYIP_…_PASSPHRASE`, else a prompt."""
    if file is not None:
        return _read_text(file, "passphrase file").split("\n")[0].rstrip("\r")
    given = os.environ.get(f"ENCRYIP_{variable}_PASSPHRASE")
    if given is not None:
        return given
    answer: str = typer.prompt(
        f"Passphrase of the {what}", hide_input=True, confirmation_prompt=new, err=True
    )
    return answer


def _print_facts(facts: dict[str, object]) -> None:
    for name, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        typer.echo(f"{name:16} {shown}")


if __name__ == "__main__":
    main()
