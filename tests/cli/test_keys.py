"""The user's part of the `encryip` command: a key pair, bundles made to it.

The user's commands run where no framework and nothing of the owner's side can be imported.
"""

import os
import re
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from keras_encryip.authority import Authority
from keras_encryip.client import X25519PublicKey
from keras_encryip.crypto.kem import MasterKey
from keras_encryip.crypto.signing import SigningKey
from keras_encryip.formats.bundle_keys import BundleKeys
from keras_encryip.formats.key_bundle import make_bundle
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import ModelMetadata

OWNER = {"ENCRYIP_AUTHORITY_PASSPHRASE": "owner"}
USER = {"ENCRYIP_BUNDLE_PASSPHRASE": "only mine"}
RUN = "from keras_encryip.cli import main; main()"
FORBID = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "keras", "sklearn", "sqlalchemy") or (
            name.startswith("keras_encryip.authority")
        ):
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)
sys.meta_path.insert(0, Forbid())
"""


def run(
    code: str, *arguments: str | Path, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ENCRYIP_")}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**kept, **environment, "COLUMNS": "200"},
    )


def owner(*arguments: str | Path) -> str:
    finished = run(RUN, *arguments, **OWNER)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def user(
    *arguments: str | Path, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    return run(FORBID + RUN, *arguments, stdin=stdin, **environment)


def ok(finished: subprocess.CompletedProcess[str]) -> str:
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def refused(finished: subprocess.CompletedProcess[str], message: str) -> None:
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert re.search(f"^Error: .*{message}", finished.stderr), finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Alice made a key pair and got a bundle to it; bob shares a passphrase; a model."""
    folder = tmp_path_factory.mktemp("keys")
    owner("authority", "create", folder / "a.authority")
    made = ok(user("key", "new", folder / "alice", **USER))
    issue = ("key", "issue", folder / "a.authority")
    told = owner(
        *issue, "alice", "--public-key", folder / "alice.public.pem",
        "--out", folder / "alice.keybundle",
    )  # fmt: skip
    fingerprint = X25519PublicKey.read(folder / "alice.public.pem").fingerprint
    assert fingerprint in made
    assert f"It must be {fingerprint}." in told
    (folder / "shared").write_text("shared\n")
    shared = ("--bundle-passphrase-file", folder / "shared")
    owner(*issue, "bob", "--out", folder / "bob.keybundle", *shared)
    assignment = LabelAssignment.draw(3, 4, 0, 256)
    with Authority.open(f"sqlite:///{folder}/a.authority", "owner") as authority:
        metadata = ModelMetadata(model="pets", class_names=["cat", "dog", "eel"])
        codebook = authority.model_store.add_model(metadata, assignment)
        assert authority.issuer.hex() in told
    (folder / "codebook.json").write_bytes(codebook.to_bytes())
    confused = np.zeros((3, 12), np.float32)
    confused[[0, 1, 2], assignment.labels[[2, 0, 1], [0, 3, 1]]] = 1
    np.save(folder / "confused.npy", confused)
    return folder


def decode(
    place: Path, name: str, *more: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    arguments = (place / "codebook.json", place / f"{name}.keybundle", place / "confused.npy")
    return user("decode", *arguments, *more, **environment)


def test_the_files_of_a_new_pair(place: Path) -> None:
    assert stat.S_IMODE((place / "alice.private.pem").stat().st_mode) == 0o600
    before = (place / "alice.private.pem").read_bytes()
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in before
    refused(user("key", "new", place / "alice", **USER), "never overwritten")
    assert (place / "alice.private.pem").read_bytes() == before


def test_a_bundle_cannot_show_an_issuer_that_is_not_its_own(place: Path, tmp_path: Path) -> None:
    """Users compare what `key inspect` shows; names in a bundle are whatever its maker wrote."""
    with Authority.open(f"sqlite:///{place}/a.authority", "owner") as authority:
        issuer = authority.issuer.hex()
    master, now = MasterKey.generate(4), datetime.now(UTC)
    key = master.issue()
    forged = make_bundle(
        BundleKeys(key.z, run=key),
        public_key=X25519PublicKey.read(place / "alice.public.pem"),
        subject="alice\x1b[2J",
        issuer_name=f"ACME\nissuer           {issuer}",
        authority=master.public_key().digest,
        signing_key=SigningKey(bytes(32)),
        not_before=now,
        not_after=now + timedelta(days=1),
    )
    (tmp_path / "alice.keybundle").write_bytes(forged)
    shown = ok(user("key", "inspect", tmp_path / "alice.keybundle")).splitlines()
    (line,) = (line for line in shown if line.startswith("issuer "))
    assert issuer not in line
    assert rf"issuer_name      ACME\nissuer           {issuer}" in shown
    assert r"subject          alice\x1b[2J" in shown
    assert "roles            run" in shown


@pytest.mark.parametrize(
    ("options", "roles"),
    [
        ((), "read, run"),
        (("--role", "read"), "read"),
        (("--role", "run"), "run"),
        (("--role", "run", "--role", "read"), "read, run"),
        (("--role", "read", "--role", "read"), "read"),
    ],
    ids=["default", "read", "run", "both", "twice"],
)
def test_a_bundle_has_the_roles_that_were_asked_for(
    place: Path, tmp_path: Path, options: tuple[str, ...], roles: str
) -> None:
    (tmp_path / "shared").write_text("shared\n")
    name = "-".join(("rosa", *options[1::2], str(len(options))))
    bundle = tmp_path / "rosa.keybundle"
    given = ("--out", bundle, "--bundle-passphrase-file", tmp_path / "shared")
    owner("key", "issue", place / "a.authority", name, *given, *options)
    shown = ok(user("key", "inspect", bundle)).splitlines()
    assert f"roles            {roles}" in shown
    files = (place / "codebook.json", bundle, place / "confused.npy")
    decoded = user("decode", *files, ENCRYIP_BUNDLE_PASSPHRASE="shared")
    if "read" in roles:
        assert ok(decoded).split() == ["eel", "cat", "dog"]
    else:
        refused(decoded, "runs models, and does not read their answers: ask the model's owner")


def test_there_is_no_other_role(place: Path, tmp_path: Path) -> None:
    issue = ("key", "issue", place / "a.authority", "otto", "--out", tmp_path / "otto.keybundle")
    finished = run(RUN, *issue, "--role", "write", **OWNER, **USER)
    assert finished.returncode == 2
    assert not (tmp_path / "otto.keybundle").exists()


def test_decode_with_a_private_key(place: Path) -> None:
    own = ("--private-key", place / "alice.private.pem")
    assert ok(decode(place, "alice", *own, **USER)).split() == ["eel", "cat", "dog"]
    refused(decode(place, "alice", *own, ENCRYIP_BUNDLE_PASSPHRASE="wrong"), "does not open the p")
    refused(decode(place, "alice", **USER), r"Pass its private key with --private-key\.")
    refused(decode(place, "bob", *own, **USER), r"A passphrase opens .*Leave out --private-key\.")
    public = ("--private-key", place / "alice.public.pem")
    refused(decode(place, "alice", *public, **USER), "private key is not one whole PEM block")


def test_decode_with_a_private_key_of_openssl(place: Path, tmp_path: Path) -> None:
    """Without encryption: nothing is asked, though nothing could be answered."""
    private, public = tmp_path / "o.private.pem", tmp_path / "o.public.pem"
    for command in (
        ("genpkey", "-algorithm", "X25519", "-out", private),
        ("pkey", "-in", private, "-pubout", "-out", public),
    ):
        subprocess.run(["openssl", *map(str, command)], check=True, timeout=60)
    out = place / "olga.keybundle"
    owner("key", "issue", place / "a.authority", "olga", "--public-key", public, "--out", out)
    finished = decode(place, "olga", "--private-key", private)
    assert ok(finished).split() == ["eel", "cat", "dog"]
    assert finished.stderr == ""


def test_inspect_shows_what_is_compared(place: Path) -> None:
    shown = ok(user("key", "inspect", place / "alice.keybundle"))
    fingerprint = X25519PublicKey.read(place / "alice.public.pem").fingerprint
    assert f"made to          {fingerprint}" in shown.splitlines()
    info = owner("authority", "info", place / "a.authority")
    (issuer,) = (line.split()[1] for line in info.splitlines() if line.startswith("issuer "))
    assert f"issuer           {issuer}" in shown.splitlines()
    assert "made to" not in ok(user("key", "inspect", place / "bob.keybundle"))


def test_unseal_with_a_private_key(place: Path, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"graph")
    options = ("--authority", place / "a.authority", "--model", "pets")
    owner("seal", tmp_path / "1", tmp_path / "pets.sealed", *options)
    command = ("unseal", tmp_path / "pets.sealed", tmp_path / "opened", place / "alice.keybundle")
    refused(user(*command, **USER), "Pass its private key with --private-key")
    ok(user(*command, "--private-key", place / "alice.private.pem", **USER))
    assert (tmp_path / "opened" / "saved_model.pb").read_bytes() == b"graph"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Cannot read the public key"),
        (b"ssh-ed25519 AAAA", "The public key is not one whole PEM block 'PUBLIC KEY'"),
        ("alice.private.pem", "The public key is not one whole PEM block 'PUBLIC KEY'"),
    ],
    ids=["missing", "ssh", "private"],
)
def test_nothing_is_issued_to_what_is_no_public_key(
    place: Path, tmp_path: Path, content: bytes | str | None, message: str
) -> None:
    path = tmp_path / "x.public.pem"
    if content is not None:
        data = content if isinstance(content, bytes) else (place / content).read_bytes()
        path.write_bytes(data)
    out = tmp_path / "x.keybundle"
    command = ("key", "issue", place / "a.authority", "xenia", "--public-key", path, "--out", out)
    refused(run(RUN, *command, **OWNER), message)
    assert not out.exists()
    assert "xenia" not in owner("key", "list", place / "a.authority")
