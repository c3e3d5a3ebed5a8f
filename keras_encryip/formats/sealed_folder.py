"""A folder as one sealed file, which any unrevoked key holder can open.

docs/formats/sealed.md describes it byte by byte. The file says in the clear which authority made
it and holds a KEM header for all users but the revoked ones; the rest, file names included, is one
encrypted stream, at whose end the authority's signature stands. Nothing is compressed.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Final, Literal

import msgspec
from Crypto.Hash import SHA256

from keras_encryip.crypto.encoding import (
    canonical_json,
    decode_base64,
    encode_base64,
    parse_canonical_json,
)
from keras_encryip.crypto.kem import Header, SharedSecret
from keras_encryip.crypto.signing import PUBLIC_BYTES, SIGNATURE_BYTES, verify
from keras_encryip.crypto.streaming_aead import CHUNK_BYTES, seal_stream, sealed_size, unseal_stream
from keras_encryip.errors import (
    ArgumentError,
    ForeignKeyError,
    FormatError,
    RevokedKeyError,
    SignatureError,
    WrongModelError,
    instead_of,
    reason,
)
from keras_encryip.formats.atomic_files import make_new_file, make_new_folder, open_file
from keras_encryip.formats.folder_index import MAX_INDEX_BYTES, Entry, Index, check_index
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PrivateKey
from keras_encryip.formats.progress import progress_bar
from keras_encryip.labels.ciphertext import DIGEST_BYTES

FORMAT: Final = "encryip-sealed-folder"
VERSION: Final = 1
MAX_HEAD_BYTES: Final = 64 << 10
DEFAULT_MAX_BYTES: Final = 1 << 30

_MAGIC: Final = b"encryip sealed folder\n"
_LENGTH_BYTES: Final = 4
_DOMAIN: Final = "sealed folder v1"
_PURPOSE: Final = "sealed folder v1"


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a sealed file says in the clear."""

    authority: str
    format: Literal["encryip-sealed-folder"]
    header: str
    issuer: str
    version: Literal[1]


# --- sealing (owner) -----------------------------------------------------------------------


def write_sealed_folder(
    directory: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    index: Index,
    authority: bytes,
    issuer: bytes,
    header: Header,
    secret: SharedSecret,
    sign: Callable[[str, bytes], bytes],
) -> None:
    """The owner's side of `seal_folder`.

    Args:
        directory: what to seal.
        path: the new file.
        index: from `list_folder`.
        authority: digest of the authority's public key.
        issuer: the authority's Ed25519 key.
        header, secret: encapsulated to whoever may open it, and used for nothing else.
        sign: (domain, message) → 64-byte signature of the authority.
    """
    folder = Path(directory)
    head = _Head(
        authority=encode_base64(authority),
        format=FORMAT,
        header=encode_base64(header.to_bytes()),
        issuer=encode_base64(issuer),
        version=VERSION,
    )
    start = _MAGIC + _with_length(canonical_json(head))

    def plaintext(advance: Callable[[int], None]) -> Iterator[bytes]:
        digest = SHA256.new(start)
        contents = (part for e in index.files for part in _contents(folder, e, advance))
        for part in chain([_with_length(canonical_json(index))], contents):
            digest.update(part)
            yield part
        yield sign(_DOMAIN, digest.digest())

    def fill(draft: Path) -> None:
        key, bound, title = secret.derive(_PURPOSE), SHA256.new(start), f"sealing {folder.name}"
        with draft.open("wb") as file, progress_bar(title, index.total) as advance:
            file.write(start)
            for chunk in seal_stream(key, plaintext(advance), bound.digest()):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

    make_new_file(path, fill)


def _contents(folder: Path, entry: Entry, advance: Callable[[int], None]) -> Iterator[bytes]:
    """A file's bytes; if it has another size than listed, that is an error."""
    left, where = entry.size, f"{entry.path!r} in {str(folder)!r}"
    with instead_of(
        OSError, raises=lambda error: ArgumentError(f"Cannot read {where}: {reason(error)}.")
    ):
        descriptor = open_file(folder / entry.path, flags=getattr(os, "O_NOFOLLOW", 0))
        with open(descriptor, "rb") as file:
            while part := file.read(min(CHUNK_BYTES, left + 1)):
                left -= len(part)
                if left < 0:
                    break
                advance(len(part))
                yield part
    if left:
        raise ArgumentError(f"The file {entry.path!r} changed while it was being sealed.")


def _with_length(text: bytes) -> bytes:
    return len(text).to_bytes(_LENGTH_BYTES, "big") + text


# --- opening (key holder) ------------------------------------------------------------------


def unseal_folder(
    path: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    bundle: str | os.PathLike[str] | KeyBundle,
    passphrase: str | None = None,
    private_key: X25519PrivateKey | None = None,
) -> None:
    """Open a sealed file into a new folder, which appears whole or not at all.

    Needs no TensorFlow, and memory for two chunks of 64 KiB and the list of files.

    Args:
        path: the sealed file.
        directory: must not exist yet.
        bundle: path of a key bundle, or one already read.
        passphrase: opens the bundle.
        private_key: the user's own, opens a bundle that was made to its public key.

    Raises:
        RevokedKeyError: the key was revoked before the file was sealed.
        ForeignKeyError: another authority than the bundle's made the file.
        ExpiredKeyError, WrongModelError: the bundle is outside its dates or its scope.
        SignatureError: any byte of the file was changed, cut off or added.
        FormatError: it is no sealed file, or names a path outside the folder.
        ArgumentError: the folder exists already, or cannot be written.
        KeyRefusedError: the bundle lacks the role `read`, or was made to another public key.
        PassphraseError: as for `KeyBundle.unlock`.

    Example:
    >>> unseal_folder(folder / "digits.sealed", folder / "opened", bundle, "correct horse")
    >>> verify_export(folder / "opened").format
    'encryip-manifest'
    """
    with _opened(path, bundle, passphrase, private_key) as (stream, index, issuer):
        title = f"opening {Path(path).name}"
        make_new_folder(directory, lambda draft: _extract_all(stream, index, issuer, draft, title))


def read_sealed(
    path: str | os.PathLike[str],
    bundle: str | os.PathLike[str] | KeyBundle,
    passphrase: str | None = None,
    private_key: X25519PrivateKey | None = None,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> dict[str, bytes]:
    """Open a sealed file in memory; nothing is written anywhere.

    For runtimes that take a model as bytes, such as ONNX Runtime, LiteRT and OpenVINO
    (docs/guides/host.md).

    Args:
        path: of the sealed file.
        bundle: as for `unseal_folder`.
        passphrase: as for `unseal_folder`.
        private_key: as for `unseal_folder`.
        max_bytes: of all files together; more are refused before any is read.

    Returns:
        The files' contents, by path with `/`, in the order of their paths.

    Raises:
        ArgumentError: `max_bytes` is no positive integer.
        FormatError: the files are larger than `max_bytes`.
        KeyRefusedError, PassphraseError, SignatureError, FormatError: as for `unseal_folder`.

    Example:
    >>> files = read_sealed(folder / "digits.sealed", bundle, "correct horse")
    >>> len(files["saved_model.pb"]) > 1000
    True
    """
    if not isinstance(max_bytes, int) or isinstance(max_bytes, bool) or max_bytes < 1:
        raise ArgumentError(
            f"`max_bytes` must be a positive integer. Received: max_bytes={max_bytes!r}"
        )
    with _opened(path, bundle, passphrase, private_key) as (stream, index, issuer):
        if index.total > max_bytes:
            raise FormatError(f"Its files have {index.total} bytes, and `max_bytes` is {max_bytes}")
        files = {entry.path: stream.all(entry.size) for entry in index.files}
        _check_end(stream, issuer)
    return files


@contextmanager
def _opened(
    path: str | os.PathLike[str],
    bundle: str | os.PathLike[str] | KeyBundle,
    passphrase: str | None,
    private_key: X25519PrivateKey | None,
) -> Iterator[tuple["_Stream", Index, bytes]]:
    """What a sealed file holds, to be read, its list, and who must have signed it."""
    if not isinstance(bundle, KeyBundle):
        bundle = KeyBundle.read(bundle)
    name = os.fspath(path)

    def refused(error: Exception) -> FormatError | SignatureError:
        kind = type(error) if isinstance(error, FormatError | SignatureError) else FormatError
        return kind(f"Cannot open the sealed file {name!r}: {reason(error).rstrip('.')}.")

    with (
        instead_of(OSError, FormatError, SignatureError, raises=refused),
        open(open_file(path), "rb") as file,
    ):
        start, head = _read_head(file)
        key = _stream_key(head, name, bundle, passphrase, private_key)
        chunks = unseal_stream(key, _reader(file), SHA256.new(start).digest())
        stream = _Stream(chunks, SHA256.new(start))
        index = _read_index(stream, os.fstat(file.fileno()).st_size - len(start))
        if not bundle.allows(index.model):
            raise WrongModelError(
                f"Key bundle {bundle.header.key_id} is not meant for model {index.model!r}."
            )
        yield stream, index, bundle.issuer


def _stream_key(
    head: _Head,
    name: str,
    bundle: KeyBundle,
    passphrase: str | None,
    private_key: X25519PrivateKey | None,
) -> bytes:
    """What the user's key makes of the file's header."""
    authority = decode_base64(head.authority, what="authority", length=DIGEST_BYTES)
    issuer = decode_base64(head.issuer, what="issuer", length=PUBLIC_BYTES)
    header = Header.from_bytes(decode_base64(head.header, what="sealed file header"))
    if (authority, issuer) != (bundle.authority, bundle.issuer):
        raise ForeignKeyError(
            f"Key bundle {bundle.header.key_id} was issued by another authority "
            f"({bundle.header.issuer_name!r}) than the one that sealed {name!r}."
        )
    bundle.check_dates()
    key = bundle.unlock(passphrase, private_key).reader.point
    if key.z in header.nodes:
        raise RevokedKeyError(
            f"Key {key.key_id} was revoked before {name!r} was sealed. "
            "Ask the model's owner for a new key."
        )
    return key.decapsulate(header).derive(_PURPOSE)


def _read_index(stream: "_Stream", size: int) -> Index:
    """The list of files, checked against the size of the encrypted stream."""
    text = stream.exactly(int.from_bytes(stream.exactly(_LENGTH_BYTES), "big"), MAX_INDEX_BYTES)
    index = parse_canonical_json(text, Index, what="list of files", max_bytes=MAX_INDEX_BYTES)
    check_index(index)
    if sealed_size(_LENGTH_BYTES + len(text) + index.total + SIGNATURE_BYTES) != size:
        raise FormatError("The files that it lists do not add up to its size.")
    return index


def _extract_all(stream: "_Stream", index: Index, issuer: bytes, draft: Path, title: str) -> None:
    for folder in index.folders:
        (draft / folder).mkdir(parents=True)
    with progress_bar(title, index.total) as advance:
        for entry in index.files:
            _extract(stream, draft / entry.path, entry.size, advance)
    _check_end(stream, issuer)


def _check_end(stream: "_Stream", issuer: bytes) -> None:
    """The signature of everything before it, and nothing behind it."""
    signed = stream.digest()
    signature = stream.exactly(SIGNATURE_BYTES)
    stream.end()
    verify(issuer, _DOMAIN, signed, signature, what="sealed file")


def _reader(file: BinaryIO) -> Callable[[int], bytes]:
    """A failure to read is told from one to write."""

    def read(count: int) -> bytes:
        with instead_of(OSError, raises=lambda error: FormatError(reason(error))):
            return file.read(count)

    return read


def _read_head(file: BinaryIO) -> tuple[bytes, _Head]:
    start = file.read(len(_MAGIC) + _LENGTH_BYTES)
    length = int.from_bytes(start[len(_MAGIC) :], "big")
    if not start.startswith(_MAGIC) or len(start) != len(_MAGIC) + _LENGTH_BYTES:
        raise FormatError("It is not a sealed file of this package.")
    if length > MAX_HEAD_BYTES:
        raise FormatError(f"Its head is too large: {length} bytes.")
    text = file.read(length)
    head = parse_canonical_json(text, _Head, what="sealed file's head", max_bytes=MAX_HEAD_BYTES)
    return start + text, head


def _extract(stream: "_Stream", path: Path, size: int, advance: Callable[[int], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        while size:
            part = stream.some(size)
            file.write(part)
            advance(len(part))
            size -= len(part)
        file.flush()
        os.fsync(file.fileno())


class _Stream:
    """The plaintext, to read from, and the digest of all that was read."""

    def __init__(self, chunks: Iterator[bytes], digest: SHA256.SHA256Hash) -> None:
        self._chunks = chunks
        self._rest = b""
        self._digest = digest

    def some(self, most: int) -> bytes:
        """At least one byte and at most so many."""
        while not self._rest:
            self._rest = next(self._chunks, b"")
            if not self._rest:
                raise FormatError("It holds less than it lists.")
        part, self._rest = self._rest[:most], self._rest[most:]
        self._digest.update(part)
        return part

    def exactly(self, count: int, most: int = CHUNK_BYTES) -> bytes:
        if count > most:
            raise FormatError(f"Its list of files is too large: {count} bytes.")
        return self.all(count)

    def all(self, count: int) -> bytes:
        collected = BytesIO()  # gives its bytes without a copy
        while (left := count - collected.tell()) > 0:
            collected.write(self.some(left))
        return collected.getvalue()

    def digest(self) -> bytes:
        return self._digest.digest()

    def end(self) -> None:
        """Nothing may follow."""
        if self._rest or any(self._chunks):
            raise FormatError("It holds more than it lists.")
