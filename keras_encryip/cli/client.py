"""What needs no TensorFlow: the user's commands, and `encryip inspect`, `verify`."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from keras_encryip.cli.shared import (
    AsJson,
    BundlePassphraseFile,
    PrivateKeyFile,
    answer,
    ask_opening,
    ask_passphrase,
    hexadecimal,
    open_decoder,
    say,
)
from keras_encryip.client.decoder import Decoder
from keras_encryip.client.unlock_key import unlock_key, write_key_file
from keras_encryip.crypto.encoding import decode_base64
from keras_encryip.errors import ArgumentError, FormatError, printable
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import write_key_pair
from keras_encryip.formats.lock import is_locked, read_lock
from keras_encryip.formats.manifest import verify_export
from keras_encryip.formats.responses import parse_response, read_outputs
from keras_encryip.formats.sealed_folder import unseal_folder
from keras_encryip.formats.version_folder import read_codebook
from keras_encryip.tracing.verify_evidence import verify_evidence


class What(StrEnum):
    """What `decode` prints."""

    names = "names"
    labels = "labels"
    probabilities = "probabilities"


ReadingBundle = Annotated[Path, typer.Argument(help="A key bundle with the role read.")]
IssuerBundle = Annotated[Path | None, typer.Option(help="Key bundle whose issuer must match.")]


def verify_evidence_command(
    directory: Annotated[Path, typer.Argument(help="The folder of evidence.")],
    bundle: IssuerBundle = None,
    issuer: Annotated[str | None, typer.Option(help="Or the issuer's key in hexadecimal.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a trace that an owner wrote as evidence; needs no key and no TensorFlow."""
    expected = KeyBundle.read(bundle).issuer if bundle else None
    if issuer is not None:
        expected = hexadecimal(issuer, 32, "--issuer")
    verified = verify_evidence(directory, issuer=expected)

    def show() -> None:
        for subject, p_value in verified.p_values.items():
            of = f"{printable(subject, 256)}, {verified.kind}"
            say(f"guilty: {of}, p = {p_value:.1e} among {verified.tests:,} tested")
        say(f"committed since {verified.committed}; signed by {verified.issuer}")
        if expected is None:
            say("Nobody was named who must have signed: pass --bundle or --issuer.")

    guilty = [{"subject": name, "p_value": chance} for name, chance in verified.p_values.items()]
    facts = {
        "guilty": guilty,
        "kind": verified.kind,
        "tests": verified.tests,
        "committed": verified.committed,
        "issuer": verified.issuer,
        "issuer expected": expected is not None,
    }
    answer(facts, as_json=as_json, show=show)


def inspect(
    model: Annotated[Path, typer.Argument(help="An exported folder, or a codebook.json.")],
    as_json: AsJson = False,
) -> None:
    """Show what a model's codebook says in public."""
    codebook = read_codebook(model)
    codebook.verify(codebook.issuer)
    key_file = None
    if is_locked(model):
        lock = read_lock(model)
        lock.verify(codebook.issuer)
        if lock.codebook_id != codebook.codebook_id:
            raise FormatError("The lock is not of the codebook beside it, but of another export.")
        key_file = lock.key_file
    facts = {
        "codebook": codebook.codebook_id.hex(),
        "authority": codebook.authority.hex(),
        "issuer": codebook.issuer.hex(),
        "classes": codebook.num_classes,
        "confused labels": codebook.num_labels,
        "threshold": codebook.header.threshold,
        "locked": key_file is not None,
        "key file": key_file,
    }
    answer(facts, as_json=as_json)


def verify(
    directory: Annotated[Path, typer.Argument(help="An exported version folder.")],
    bundle: IssuerBundle = None,
    as_json: AsJson = False,
) -> None:
    """Check that an exported folder is whole and unchanged, and who signed it."""
    issuer = KeyBundle.read(bundle).issuer if bundle else None
    manifest = verify_export(directory, issuer=issuer)

    def show() -> None:
        trust = (
            "signed by the issuer of your key bundle"
            if bundle
            else "signed by the key it names itself; pass --bundle to check whose that is"
        )
        say(f"{directory}: {len(manifest.files)} files, whole and unchanged, {trust}.")
        if manifest.warning:
            say(manifest.warning)

    facts = {
        "directory": str(directory),
        "files": len(manifest.files),
        "codebook": manifest.codebook_id,
        "issuer": decode_base64(manifest.issuer, what="issuer").hex(),
        "issuer expected": issuer is not None,
        "created at": manifest.created_at,
        "warning": manifest.warning or None,
    }
    answer(facts, as_json=as_json, show=show)


def key_new(
    name: Annotated[
        str, typer.Argument(help="Writes NAME.private.pem, to keep, and NAME.public.pem, to send.")
    ],
    bundle_passphrase_file: BundlePassphraseFile = None,
) -> None:
    """Make a key pair of your own, so that no passphrase is shared with the owner."""
    passphrase = ask_passphrase(bundle_passphrase_file, "new private key", "BUNDLE", new=True)
    private, public = f"{name}.private.pem", f"{name}.public.pem"
    key = write_key_pair(private, public, passphrase)
    say(f"Wrote {private}: keep it. Send {public} to the owner, and tell them by another")
    say(f"way, e.g. by telephone, its fingerprint: {key.fingerprint}")


def unseal(
    file: Annotated[Path, typer.Argument(help="What `encryip seal` made.")],
    directory: Annotated[Path, typer.Argument(help="New folder.")],
    bundle: ReadingBundle,
    bundle_passphrase_file: BundlePassphraseFile = None,
    private_key: PrivateKeyFile = None,
) -> None:
    """Open a sealed file into a new folder. Needs no TensorFlow."""
    key_bundle = KeyBundle.read(bundle)
    opening = ask_opening(key_bundle, private_key, bundle_passphrase_file)
    unseal_folder(file, directory, key_bundle, *opening)
    say(f"Opened {directory}, signed by the issuer of your key bundle.")


def unlock(
    directory: Annotated[Path, typer.Argument(help="The version folder of a locked export.")],
    bundle: Annotated[Path, typer.Argument(help="A key bundle with the role run.")],
    out: Annotated[
        str,
        typer.Option(help="The key file, readable by you alone; - for standard output, to a pipe."),
    ],
    bundle_passphrase_file: BundlePassphraseFile = None,
    private_key: PrivateKeyFile = None,
) -> None:
    """Make the key of a locked export. Needs no TensorFlow."""
    if out == "-" and sys.stdout.isatty():
        raise ArgumentError("The key is 32 bytes, and not for a terminal: pipe it, or name a file.")
    lock, key_bundle = read_lock(directory), KeyBundle.read(bundle)
    opening = ask_opening(key_bundle, private_key, bundle_passphrase_file)
    key = unlock_key(directory, key_bundle, *opening)
    if out == "-":
        sys.stdout.buffer.write(key)
        sys.stdout.buffer.flush()
        return
    write_key_file(out, key, outside=directory)
    say(f"Wrote {out}. The model looks for its key at {lock.key_file}.")


def decode(
    model: Annotated[Path, typer.Argument(help="An exported folder, or a codebook.json.")],
    bundle: ReadingBundle,
    outputs: Annotated[
        str, typer.Argument(help="A .npy or .csv file; - for TF Serving's JSON on stdin.")
    ] = "-",
    what: Annotated[What, typer.Option(help="What to print, one prediction a line.")] = What.names,
    quantised: Annotated[
        bool, typer.Option("--quantised", help="The outputs' runtime rounds to a few bits.")
    ] = False,
    bundle_passphrase_file: BundlePassphraseFile = None,
    private_key: PrivateKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Decode a protected model's outputs with a key bundle. Needs no TensorFlow."""
    decoder = open_decoder(model, bundle, private_key, bundle_passphrase_file)
    answers = parse_response(sys.stdin.buffer.read()) if outputs == "-" else read_outputs(outputs)
    decoded = _decode(decoder, answers, what, quantised)

    def show() -> None:
        if what is What.probabilities:
            for row in decoded.reshape(-1, len(decoder.class_names)):
                say(",".join(f"{value:.6g}" for value in row))
        else:
            for item in decoded.reshape(-1):
                say(str(item))

    facts = {
        "model": decoder.model,
        "class names": list(decoder.class_names),
        what.value: decoded.tolist(),
    }
    answer(facts, as_json=as_json, show=show)


def _decode(
    decoder: Decoder, answers: np.ndarray | list[bytes], what: What, quantised: bool
) -> np.ndarray:
    """Names or labels `[...]`, or probabilities `[..., K]`."""
    if isinstance(answers, list):
        if what is What.probabilities:
            raise ArgumentError("Label ciphertexts hold one label each, and no probabilities.")
        labels = decoder.decrypt(answers)
    elif what is What.probabilities:
        return decoder.probabilities(answers, quantised=quantised)
    else:
        labels = decoder.labels(answers, quantised=quantised)
    names = np.array(decoder.class_names, object)
    return np.asarray(names[labels] if what is What.names else labels)
