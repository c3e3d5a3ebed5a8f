"""`encryip demo`, `authority`, `key` and `export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

import keras_encryip as ke
from keras_encryip.cli.quiet import quiet_tensorflow
from keras_encryip.cli.shared import (
    AsJson,
    AuthorityArgument,
    AuthorityPassphraseFile,
    BundlePassphraseFile,
    answer,
    ask_passphrase,
    check_new,
    check_present,
    lines_of,
    opened_authority,
    print_facts,
    say,
)
from keras_encryip.crypto.slots import DEFAULT_SLOTS
from keras_encryip.errors import ArgumentError, instead_of, needing
from keras_encryip.formats.atomic_files import make_new_folder
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PublicKey
from keras_encryip.formats.manifest import verify_export
from keras_encryip.formats.text import as_shown, check_name, is_file_name
from keras_encryip.formats.version_folder import read_codebook

authority_app = typer.Typer(help="The owner's secrets and ledger.", no_args_is_help=True)
key_app = typer.Typer(help="Users' keys.", no_args_is_help=True)


def demo(
    directory: Annotated[
        Path, typer.Option(help="New folder for everything the demo makes.")
    ] = Path("encryip-demo"),
) -> None:
    """Protect, train, export, issue keys, decode, steal and trace, on embedded data."""
    console = Console()

    def fill(draft: Path) -> None:
        with (
            console.status("loading TensorFlow"),
            quiet_tensorflow(),
            needing("owner,plots"),
        ):
            from keras_encryip.cli.demo import run_demo

        run_demo(draft, directory, console)

    make_new_folder(directory, fill)


@authority_app.command("create")
def authority_create(
    authority: AuthorityArgument,
    threshold: Annotated[int, typer.Option(help="How many users can be revoked, 1 … 64.")] = 4,
    slots: Annotated[
        int, typer.Option(help="Bits of a user's codeword, a multiple of 8 in 256 … 4096.")
    ] = DEFAULT_SLOTS,
    name: Annotated[str | None, typer.Option(help="Shown to users in their bundles.")] = None,
    authority_passphrase_file: AuthorityPassphraseFile = None,
) -> None:
    """Draw new secrets and write them, sealed, into a new file."""
    passphrase = ask_passphrase(authority_passphrase_file, "authority", "AUTHORITY", new=True)
    with ke.Authority.create(
        authority, passphrase, threshold=threshold, slots=slots, name=name
    ) as owner:
        say(f"Created {authority}, public key {owner.public_key.digest.hex()[:16]}.")


@authority_app.command("info")
def authority_info(
    authority: AuthorityArgument,
    expect_log: Annotated[
        str | None,
        typer.Option(
            help="What an earlier `info` said of the log: fails if its newest events were cut "
            "off, or the file is an old copy.",
            metavar="N:DIGEST",
        ),
    ] = None,
    authority_passphrase_file: AuthorityPassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Check an authority's file, and show its public facts and its log."""
    with opened_authority(authority, authority_passphrase_file, expect_log) as owner:
        users, events = owner.users(), owner.events()
        revoked = sum(user.status == "revoked" for user in users)
        facts: dict[str, Any] = {
            "name": owner.name,
            "public key": owner.public_key.digest.hex(),
            "issuer": owner.issuer.hex(),
            "users": len(users),
            "revoked": revoked,
            "threshold": owner.threshold,
            "slots": owner.keys.slots.count,
            "models": owner.models(),
            "log": owner.log_head,
            "events": list(map(_fields, events)),
        }

    def show() -> None:
        counts = f"{len(users)}, {revoked} of at most {facts['threshold']} revoked"
        shown = {"users": counts, "models": ", ".join(facts["models"]) or "none"}
        print_facts(facts | shown | dict.fromkeys(("revoked", "threshold", "events")))
        table = Table("", "when (UTC)", "what", "details")
        for event in events:
            details = ", ".join(f"{k}={v}" for k, v in event.details.items())
            row = (event.number, event.at, event.kind, details)
            table.add_row(*map(as_shown, row))
        Console().print(table)

    answer(facts, as_json=as_json, show=show)


class KeyRole(StrEnum):
    """What a key bundle is for."""

    read = "read"
    run = "run"


@key_app.command("issue")
def key_issue(
    authority: AuthorityArgument,
    subject: Annotated[str, typer.Argument(help="Who gets the key.")],
    out: Annotated[Path | None, typer.Option(help="Default: SUBJECT.keybundle.")] = None,
    role: Annotated[
        list[KeyRole] | None,
        typer.Option(
            help="read decodes answers, run runs locked exports; repeatable; default both."
        ),
    ] = None,
    days: Annotated[float, typer.Option(help="Until the bundle expires.")] = 365,
    model: Annotated[
        list[str] | None, typer.Option(help="Model it is meant for; repeatable; default any.")
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(help="The user's own, made with `key new`, instead of a passphrase."),
    ] = None,
    authority_passphrase_file: AuthorityPassphraseFile = None,
    bundle_passphrase_file: BundlePassphraseFile = None,
) -> None:
    """Issue a key and write its bundle."""
    path = out or _default_path(subject)
    recipient = passphrase = None
    with opened_authority(authority, authority_passphrase_file) as owner:
        if public_key is not None:
            recipient = X25519PublicKey.read(public_key)
        else:
            passphrase = ask_passphrase(bundle_passphrase_file, "new bundle", "BUNDLE", new=True)
        user = owner.issue(
            subject,
            path,
            roles=[each.value for each in role or KeyRole],
            passphrase=passphrase,
            public_key=recipient,
            days=days,
            models=model,
        )
        issuer = owner.issuer.hex()
    say(f"Wrote {path}, key {user.key_id}, valid to {user.not_after}.")
    if recipient is not None:
        say(f"Before you send it, ask {subject}, e.g. by telephone, for the fingerprint of")
        say(f"their public key. It must be {recipient.fingerprint}. Tell them your issuer:")
        say(issuer)


def _default_path(subject: str) -> Path:
    """In the current folder, whatever the name is."""
    name = f"{check_name(subject, 'subject')}.keybundle"
    if not is_file_name(name):
        raise ArgumentError(
            f"{subject!r} makes no plain file name: say with --out where the key bundle goes."
        )
    return Path(name)


@key_app.command("revoke")
def key_revoke(
    authority: AuthorityArgument,
    subject: Annotated[str, typer.Argument(help="Whose key.")],
    authority_passphrase_file: AuthorityPassphraseFile = None,
) -> None:
    """Shut a user out of every later export."""
    with opened_authority(authority, authority_passphrase_file) as owner:
        user = owner.revoke(subject)
    say(f"Revoked {subject} ({user.key_id}). Export again, or rotate, to shut the key out.")


@key_app.command("list")
def key_list(
    authority: AuthorityArgument,
    authority_passphrase_file: AuthorityPassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """List the users and their keys."""
    with opened_authority(authority, authority_passphrase_file) as owner:
        users = owner.users()

    def show() -> None:
        table = Table("subject", "key", "status", "roles", "models", "issued", "expires")
        for user in users:
            row = (
                user.subject,
                user.key_id,
                user.status,
                ", ".join(user.roles),
                ", ".join(user.scope),
                user.issued_at[:10],
                user.not_after[:10],
            )
            table.add_row(*map(as_shown, row))
        Console().print(table)

    answer({"users": list(map(_fields, users))}, as_json=as_json, show=show)


@key_app.command("inspect")
def key_inspect(
    bundle: Annotated[Path, typer.Argument(help="A key bundle.")], as_json: AsJson = False
) -> None:
    """Show what a key bundle says in the clear, its signature checked."""
    read = KeyBundle.read(bundle)
    hexadecimal = {"authority": read.authority.hex(), "issuer": read.issuer.hex()}
    made_to = {"made to": read.recipient.fingerprint if read.recipient else None}
    answer(_fields(read.header) | hexadecimal | made_to, as_json=as_json)


def _fields(struct: msgspec.Struct) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


@key_app.command("enroll")
def key_enroll(
    authority: AuthorityArgument,
    subjects: Annotated[Path, typer.Argument(help="A text file with one name a line.")],
    authority_passphrase_file: AuthorityPassphraseFile = None,
) -> None:
    """Draw keys for many users at once; `issue` writes a user's bundle when it is wanted."""
    lines = lines_of(subjects, "list of names", max_bytes=1 << 28)
    names = [line.strip(" \t") for line in lines]
    with opened_authority(authority, authority_passphrase_file) as owner:
        users = owner.enroll(name for name in names if name)
    say(f"Enrolled {len(users)} users.")


class Weights(StrEnum):
    """How an exported model's weights are written."""

    plain = "plain"
    locked = "locked"


class Responses(StrEnum):
    """What an exported model answers with."""

    confused = "confused"
    encrypted = "encrypted"


def export(
    authority: AuthorityArgument,
    model: Annotated[Path, typer.Argument(help="A protected model saved as `.keras`.")],
    directory: Annotated[Path, typer.Argument(help="New version folder, e.g. served/digits/2.")],
    recipient: Annotated[
        str | None, typer.Option(help="User whose mark the weights of this copy carry.")
    ] = None,
    responses: Annotated[
        Responses, typer.Option(help="encrypted: for your own server; the folder holds a key.")
    ] = Responses.confused,
    weights: Annotated[
        Weights, typer.Option(help="locked: noise to whoever has no host key; see `unlock`.")
    ] = Weights.plain,
    key_file: Annotated[
        str | None,
        typer.Option(
            help="Of a locked export: where the host will have the key; default "
            "/run/secrets/encryip/NAME.key."
        ),
    ] = None,
    authority_passphrase_file: AuthorityPassphraseFile = None,
) -> None:
    """Export a saved protected model for TF Serving, under today's revocations."""
    check_present(model, "model")
    check_new(directory)
    with opened_authority(authority, authority_passphrase_file) as owner:
        with needing("owner"):
            import keras
        with instead_of(
            ValueError,
            OSError,
            TypeError,
            raises=lambda error: ArgumentError(
                f"Cannot load {str(model)!r}: {' '.join(str(error).split())}"
            ),
        ):
            loaded = keras.models.load_model(model)
        if not isinstance(loaded, ke.ProtectedModel):
            raise ArgumentError(f"{str(model)!r} is not a protected model.")
        loaded.unlock(authority=owner)
        ke.export_saved_model(
            loaded,
            directory,
            recipient=recipient,
            responses=responses.value,
            weights=weights.value,
            key_file=key_file,
        )
    say(f"Exported {directory}.")
    if warning := verify_export(directory).warning:
        say(warning, err=True)


def rotate(
    source: Annotated[Path, typer.Argument(help="An exported version folder, served/digits/1.")],
    directory: Annotated[Path, typer.Argument(help="New version folder, served/digits/2.")],
    authority: Annotated[str, typer.Option(help="The authority's file, or a sqlite URL.")],
    authority_passphrase_file: AuthorityPassphraseFile = None,
) -> None:
    """Give an exported folder a new version, reordered, that shuts out who was revoked."""
    check_new(directory)
    read_codebook(source)
    with opened_authority(authority, authority_passphrase_file) as owner:
        ke.rotate_codebook(source, directory, authority=owner)
    say(f"Rotated {source} to {directory}.")
    if warning := verify_export(directory).warning:
        say(warning, err=True)


def seal(
    directory: Annotated[Path, typer.Argument(help="Any folder, e.g. served/digits/2.")],
    file: Annotated[Path, typer.Argument(help="New file, e.g. digits.sealed.")],
    authority: Annotated[str, typer.Option(help="The authority's file, or a sqlite URL.")],
    model: Annotated[str, typer.Option(help="Name of the protected model it belongs to.")],
    authority_passphrase_file: AuthorityPassphraseFile = None,
) -> None:
    """Seal a folder into one file for all users but the revoked ones."""
    check_present(directory, "folder")
    check_new(file)
    with opened_authority(authority, authority_passphrase_file) as owner:
        ke.seal_folder(owner, directory, file, model=model)
    say(f"Sealed {directory} as {file}.")
