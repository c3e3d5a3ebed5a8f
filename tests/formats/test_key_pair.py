"""A user's own key pair: its files, OpenSSL's files, and files that are something else."""

import base64
import copy
import hashlib
import json
import os
import pickle
import stat
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from Crypto.PublicKey import ECC, RSA
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keras_encryip.errors import (
    ArgumentError,
    EncryipError,
    FormatError,
    PassphraseError,
    SignatureError,
)
from keras_encryip.formats.key_pair import (
    MAX_PEM_BYTES,
    X25519PrivateKey,
    X25519PublicKey,
    is_encrypted,
    write_key_pair,
)

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "public_key_bundle.json").read_text(encoding="ascii")
)
PASSPHRASE = "a passphrase of my own"
KEY = X25519PrivateKey.generate()
PEM = KEY.to_pem(PASSPHRASE)
P = 2**255 - 19
# Every u of a point of small order below 2^255, on the curve and its twist (RFC 7748, section 7).
ORDER_8 = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
SMALL_ORDER = (0, 1, P - 1, *ORDER_8)


def openssl(*arguments: str | Path, stdin: bytes = b"") -> bytes:
    finished = subprocess.run(
        ["openssl", *map(str, arguments)], input=stdin, capture_output=True, timeout=60, check=True
    )
    return finished.stdout


def pem(label: str, der: bytes) -> bytes:
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n".encode()


# --- files ---------------------------------------------------------------------


def test_a_key_pair_is_two_new_files(tmp_path: Path) -> None:
    private, public = tmp_path / "alice.private.pem", tmp_path / "alice.public.pem"
    key = write_key_pair(private, str(public), PASSPHRASE)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert private.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    assert X25519PublicKey.read(public) == key
    assert X25519PrivateKey.read(str(private), PASSPHRASE).public_key == key
    assert sorted(p.name for p in tmp_path.iterdir()) == [private.name, public.name]


@pytest.mark.parametrize("taken", ["alice.private.pem", "alice.public.pem"])
def test_nothing_is_overwritten(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_bytes(b"mine")
    with pytest.raises(ArgumentError, match=rf"{taken}.*exists already, and is never overwritten"):
        write_key_pair(tmp_path / "alice.private.pem", tmp_path / "alice.public.pem", PASSPHRASE)
    assert [p.name for p in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_bytes() == b"mine"


def test_a_pair_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    for public in (tmp_path / "no folder" / "a.public.pem", tmp_path / "a.private.pem"):
        with pytest.raises(ArgumentError, match="Cannot write"):
            write_key_pair(tmp_path / "a.private.pem", public, PASSPHRASE)
        assert list(tmp_path.iterdir()) == []


def test_a_dangling_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.public.pem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArgumentError, match="never overwritten"):
        write_key_pair(tmp_path / "a.private.pem", tmp_path / "a.public.pem", PASSPHRASE)
    assert [p.name for p in tmp_path.iterdir()] == ["a.public.pem"]


def test_a_private_key_is_not_written_without_a_passphrase(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="`passphrase` must be a string that is not empty"):
        write_key_pair(tmp_path / "a.private.pem", tmp_path / "a.public.pem", "")
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"Cannot read the public key '.*nobody': No such file"):
        X25519PublicKey.read(tmp_path / "nobody")
    with pytest.raises(FormatError, match=r"Cannot read the private key '.*': Is a directory"):
        X25519PrivateKey.read(tmp_path, PASSPHRASE)
    large = tmp_path / "large.pem"
    large.write_bytes(b" " * MAX_PEM_BYTES + b"\n" + KEY.public_key.to_pem())
    for read in (X25519PublicKey.read, X25519PrivateKey.read):
        with pytest.raises(FormatError, match="is too large: more than 8192 bytes"):
            read(large)


def test_the_passphrase_may_be_typed_on_another_keyboard() -> None:
    own = X25519PrivateKey.from_pem(VECTORS["private_key_pem"].encode(), VECTORS["passphrase"])
    same = X25519PrivateKey.from_pem(VECTORS["private_key_pem"].encode(), "correct h\u00f6rse")
    assert own.public_key == same.public_key
    assert own.public_key.to_pem().decode() == VECTORS["public_key_pem"]
    assert own.public_key.fingerprint == VECTORS["fingerprint"]


@pytest.mark.parametrize("wrong", ["A passphrase of my own", PASSPHRASE + " ", "\0"], ids=repr)
def test_a_wrong_passphrase_is_refused_and_leaves_no_trace(wrong: str) -> None:
    with pytest.raises(PassphraseError, match="does not open the private key, or it") as caught:
        X25519PrivateKey.from_pem(PEM, wrong)
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_a_passphrase_is_passed_exactly_if_it_is_needed() -> None:
    plain = openssl("genpkey", "-algorithm", "X25519")
    assert not is_encrypted(plain)
    assert is_encrypted(PEM)
    with pytest.raises(PassphraseError, match="is encrypted: pass its passphrase"):
        X25519PrivateKey.from_pem(PEM)
    with pytest.raises(PassphraseError, match="is not encrypted: pass no passphrase"):
        X25519PrivateKey.from_pem(plain, PASSPHRASE)
    with pytest.raises(ArgumentError, match="`passphrase` must be a string that is not empty"):
        X25519PrivateKey.from_pem(PEM, "")


# --- OpenSSL -------------------------------------------------------------------


def test_openssl_reads_what_is_written_here(tmp_path: Path) -> None:
    private, public = tmp_path / "a.private.pem", tmp_path / "a.public.pem"
    key = write_key_pair(private, public, PASSPHRASE)
    source = ("pkey", "-in", private, "-passin", f"pass:{PASSPHRASE}")
    assert openssl(*source, "-pubout") == public.read_bytes()
    assert b"X25519 Private-Key" in openssl(*source, "-noout", "-text")
    der = openssl("pkey", "-pubin", "-in", public, "-outform", "DER")
    digest = hashlib.sha256(der).hexdigest()
    assert key.digest.hex() == digest
    assert key.fingerprint == " ".join(digest[at : at + 4] for at in range(0, 32, 4))
    with pytest.raises(subprocess.CalledProcessError):
        openssl("pkey", "-in", private, "-passin", "pass:wrong", "-pubout")


@pytest.mark.parametrize(
    "encryption",
    [
        (),
        ("-aes-256-cbc", "-pass", f"pass:{PASSPHRASE}"),
        ("-aes-128-cbc", "-pass", f"pass:{PASSPHRASE}"),
    ],
    ids=["plain", "aes-256", "aes-128"],
)
def test_what_openssl_writes_is_read_here(tmp_path: Path, encryption: tuple[str, ...]) -> None:
    path = tmp_path / "o.private.pem"
    openssl("genpkey", "-algorithm", "X25519", *encryption, "-out", path)
    key = X25519PrivateKey.read(path, PASSPHRASE if encryption else None)
    source = ("pkey", "-in", path, *(("-passin", f"pass:{PASSPHRASE}") if encryption else ()))
    public = openssl(*source, "-pubout")
    assert X25519PublicKey.from_pem(public) == key.public_key
    assert key.public_key.to_pem() == public
    assert X25519PrivateKey.from_pem(key.to_pem("x"), "x").public_key == key.public_key


def test_openssl_converts_our_file_to_pbkdf2_and_scrypt(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_bytes(PEM)
    source = ("pkcs8", "-topk8", "-in", tmp_path / "a.pem", "-passin", f"pass:{PASSPHRASE}")
    for form in (("-v2", "aes256", "-iter", "10000"), ("-scrypt",)):
        made = openssl(*source, *form, "-passout", "pass:other")
        assert X25519PrivateKey.from_pem(made, "other").public_key == KEY.public_key


# --- sealing -------------------------------------------------------------------


def test_only_the_private_key_unseals() -> None:
    context = {"info": b"info", "associated_data": b"header"}
    encapsulated, sealed = KEY.public_key.seal(b"secret of 64 bytes", **context)
    assert (len(encapsulated), len(sealed)) == (32, 18 + 16)
    assert KEY.unseal(encapsulated, sealed, **context) == b"secret of 64 bytes"
    again = KEY.public_key.seal(b"secret of 64 bytes", **context)
    assert again[0] != encapsulated
    assert again[1] != sealed
    changed = [
        (X25519PrivateKey.generate(), encapsulated, sealed, context),
        (KEY, again[0], sealed, context),
        (KEY, encapsulated, sealed[:-1], context),
        (KEY, encapsulated, sealed[:10], context),
        (KEY, encapsulated, sealed[:-1] + bytes([sealed[-1] ^ 1]), context),
        (KEY, encapsulated[:-1], sealed, context),
        (KEY, bytes(32), sealed, context),
        (KEY, encapsulated, sealed, {**context, "info": b"other"}),
        (KEY, encapsulated, sealed, {**context, "associated_data": b"other"}),
    ]
    for key, first, second, where in changed:
        with pytest.raises(SignatureError, match=r"^The sealed data cannot be opened") as caught:
            key.unseal(first, second, **where)
        assert caught.value.__context__ is None


# --- keys that are refused -----------------------------------------------------


@pytest.mark.parametrize("u", SMALL_ORDER)
@pytest.mark.parametrize("spelling", [0, P, 1 << 255], ids=["", "plus p", "high bit"])
def test_points_of_small_order_are_refused(u: int, spelling: int) -> None:
    raw = (u + spelling if u + spelling < 1 << 256 else u).to_bytes(32, "little")
    with pytest.raises(FormatError, match="not an X25519 public key that can be used"):
        X25519PublicKey(raw)
    with pytest.raises(FormatError, match="not an X25519 public key that can be used"):
        X25519PublicKey.from_pem(pem("PUBLIC KEY", bytes.fromhex("302a300506032b656e032100") + raw))


@pytest.mark.parametrize(
    "raw",
    [
        (9 + (1 << 255)).to_bytes(32, "little"),
        (P + 9).to_bytes(32, "little"),
        (9).to_bytes(31, "little"),
        (9).to_bytes(33, "little"),
        b"",
    ],
    ids=["high bit", "plus p", "short", "long", "empty"],
)
def test_second_spellings_and_other_lengths_are_refused(raw: bytes) -> None:
    assert X25519PublicKey((9).to_bytes(32, "little")).raw[0] == 9
    with pytest.raises(FormatError, match="not an X25519 public key that can be used"):
        X25519PublicKey(raw)


RSA_KEY = RSA.generate(2048)
CURVES = {name: ECC.generate(curve=name) for name in ("P-256", "Ed25519", "Curve448")}
PUBLIC_PEM = KEY.public_key.to_pem()
PLAIN_PEM = openssl("genpkey", "-algorithm", "X25519")

OTHER_PUBLIC = {
    "RSA": RSA_KEY.public_key().export_key(),
    **{name: key.public_key().export_key(format="PEM") for name, key in CURVES.items()},
    "one byte more": pem(
        "PUBLIC KEY", bytes.fromhex("302a300506032b656e032100") + KEY.public_key.raw + b"\0"
    ),
    "nothing inside": pem("PUBLIC KEY", b""),
}


@pytest.mark.parametrize("name", OTHER_PUBLIC)
def test_public_keys_of_other_kinds_are_refused(name: str) -> None:
    data = OTHER_PUBLIC[name]
    with pytest.raises(FormatError, match=r"The public key is not|not an X25519 public key"):
        X25519PublicKey.from_pem(data if isinstance(data, bytes) else data.encode())


OTHER_PRIVATE = {
    "RSA": RSA_KEY.export_key(pkcs=8),
    "RSA, PKCS 1": RSA_KEY.export_key(pkcs=1),
    **{name: key.export_key(format="PEM", use_pkcs8=True) for name, key in CURVES.items()},
    "SEC 1": CURVES["P-256"].export_key(format="PEM", use_pkcs8=False),
    "a public key": PUBLIC_PEM,
    "nothing inside": pem("PRIVATE KEY", b""),
    "a number": pem("PRIVATE KEY", bytes.fromhex("020101")),
}


@pytest.mark.parametrize("name", OTHER_PRIVATE)
def test_private_keys_of_other_kinds_are_refused(name: str) -> None:
    data = OTHER_PRIVATE[name]
    with pytest.raises(FormatError, match=r"The private key is not") as caught:
        X25519PrivateKey.from_pem(data if isinstance(data, bytes) else data.encode())
    assert caught.value.__context__ is None


def test_an_encrypted_key_of_another_kind_is_refused() -> None:
    for key in CURVES.values():
        data = key.export_key(
            format="PEM", use_pkcs8=True, passphrase=b"x", protection="scryptAndAES256-CBC"
        )
        with pytest.raises(FormatError, match="The private key is not for X25519"):
            X25519PrivateKey.from_pem(data.encode(), "x")


ARMOUR = {
    "empty": lambda data: b"",
    "garbage": lambda data: os.urandom(200),
    "two blocks": lambda data: data + data,
    "text before": lambda data: b"Dear owner,\n" + data,
    "text after": lambda data: data + b"Best regards\n",
    "no end": lambda data: data[: data.index(b"-----END")],
    "no begin": lambda data: data.split(b"\n", 1)[1],
    "old header": lambda data: data.replace(b"-----\n", b"-----\nProc-Type: 4,ENCRYPTED\n\n", 1),
    "another end": lambda data: data.replace(b"-----END ", b"-----END RSA "),
    "no padding": lambda data: data.replace(b"=", b""),
    "other alphabet": lambda data: data.replace(b"M", b"_", 1),
    "not ASCII": lambda data: data.replace(b"M", "Ä".encode(), 1),
    "null byte": lambda data: data.replace(b"\n", b"\0\n", 1),
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "DER": lambda data: base64.b64decode(b"".join(data.split(b"\n")[1:-2])),
}


@pytest.mark.parametrize("name", ARMOUR)
def test_what_is_not_one_whole_block_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match="public key is not one whole PEM block 'PUBLIC KEY'"):
        X25519PublicKey.from_pem(ARMOUR[name](PUBLIC_PEM))
    for data, passphrase in ((PLAIN_PEM, None), (PEM, PASSPHRASE)):
        changed = ARMOUR[name](data)
        if changed != data:  # an encrypted key may need no padding
            with pytest.raises((FormatError, PassphraseError), match="private key is not"):
                X25519PrivateKey.from_pem(changed, passphrase)


def test_line_ends_white_space_and_a_byte_order_mark_do_not_matter() -> None:
    for change in (
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: b"\n\n " + data + b" \n\n",
        lambda data: data.rstrip(b"\n"),
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"),
    ):
        assert X25519PublicKey.from_pem(change(PUBLIC_PEM)) == KEY.public_key
        assert X25519PrivateKey.from_pem(change(PEM), PASSPHRASE).public_key == KEY.public_key


PLAIN_DER = base64.b64decode(b"".join(PLAIN_PEM.split(b"\n")[1:-2]))
PLAIN_KEY = X25519PrivateKey.from_pem(PLAIN_PEM).public_key


def clamped(seed: bytes) -> bytes:
    """The bits of a seed that X25519 uses (RFC 7748, section 5)."""
    return bytes([seed[0] & 248, *seed[1:31], seed[31] & 127 | 64])


@settings(max_examples=1500, deadline=None)
@given(st.integers(0, len(PLAIN_DER) - 1), st.binary(max_size=3), st.integers(0, 3))
@example(0, b"", 0)
@example(len(PLAIN_DER) - 32, bytes([PLAIN_DER[-32] ^ 7]), 1)
@example(len(PLAIN_DER) - 1, bytes([PLAIN_DER[-1] ^ 128]), 1)
def test_a_changed_private_key_is_refused_or_another_key(at: int, fill: bytes, cut: int) -> None:
    """Never an error of the library's, which might say what is inside."""
    der = PLAIN_DER[:at] + fill + PLAIN_DER[at + cut :]
    try:
        key = X25519PrivateKey.from_pem(pem("PRIVATE KEY", der))
    except EncryipError as error:
        assert error.__context__ is None  # noqa: PT017  either outcome is fine
    else:
        assert key.public_key != PLAIN_KEY or clamped(der[-32:]) == clamped(PLAIN_DER[-32:])


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=100), st.sampled_from(["PUBLIC KEY", "PRIVATE KEY"]))
def test_arbitrary_insides_are_refused(der: bytes, label: str) -> None:
    read: Callable[[bytes], Any] = {
        "PUBLIC KEY": X25519PublicKey.from_pem,
        "PRIVATE KEY": X25519PrivateKey.from_pem,
    }[label]
    with pytest.raises(FormatError):
        read(pem(label, der))


# --- holding it ----------------------------------------------------------------


def forms_of(key: X25519PrivateKey) -> list[str]:
    seed = key._key.seed
    return [seed.hex(), repr(seed), str(int(key._key.d)), base64.b64encode(seed).decode()[:40]]


def test_repr_shows_the_fingerprint_only() -> None:
    assert str(int(KEY._key.d)) in repr(KEY._key), "why the key is wrapped"
    assert repr(KEY) == f"<X25519PrivateKey public='{KEY.public_key.fingerprint}'>"
    shown = f"{KEY!r} {KEY} {[KEY]} { {'key': KEY} }"
    assert [form for form in forms_of(KEY) if form in shown] == []


@pytest.mark.parametrize(
    "copier", [pickle.dumps, copy.copy, copy.deepcopy], ids=lambda c: c.__name__
)
def test_pickling_and_copying_are_refused(copier: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="X25519PrivateKey holds a secret and cannot be pickled"):
        copier(KEY)


def test_tracebacks_show_neither_key_nor_passphrase() -> None:
    wrong, plaintext = "my wrong passphrase", b"plaintext of the user"
    sealed = KEY.public_key.seal(plaintext, info=b"", associated_data=b"h")
    failures = [
        lambda: X25519PrivateKey.from_pem(PEM, wrong),
        lambda: X25519PrivateKey.from_pem(PEM[:-60] + PEM[-59:], wrong),
        lambda: X25519PrivateKey.from_pem(PLAIN_PEM, wrong),
        lambda: X25519PrivateKey.from_pem(pem("PRIVATE KEY", PLAIN_DER[:-1])),
        lambda: KEY.unseal(*sealed, info=b"", associated_data=b"another"),
    ]
    secrets = [*forms_of(KEY), wrong, PASSPHRASE, plaintext.decode(), PLAIN_PEM.decode()[30:80]]
    for fail in failures:
        with pytest.raises(EncryipError) as caught:
            fail()
        shown = "".join(traceback.format_exception(caught.value))
        assert "key_pair.py" in shown
        assert [secret for secret in secrets if secret in shown] == []
