"""A folder as one sealed file, which any unrevoked key holder can open.

docs/sealed.md describes it byte by byte. The file says in the clear which authority made it and
holds a KEM header for all users but the revoked ones; the rest, file names included, is one
encrypted stream, at whose end the authority's signature stands. Nothing is compressed.
"""

import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Literal

import msgspec
from Crypto.Hash import SHA256

from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.atomic_files import make_new_file, make_new_folder
from keras_encryip.formats.key_pair import X25519PrivateKey
from keras_encryip.formats.progress import progress_bar
from keras_encryip.crypto.encoding import canonical_json, decode_base64, encode_base64, parse_canonical_json
from keras_encryip.crypto.kem import Header, SharedSecret
from keras_encryip.crypto.signing import PUBLIC_BYTES, SIGNATURE_BYTES, verify
from keras_encryip.crypto.streaming_aead import CHUNK_BYTES, seal_stream, sealed_size, unseal_stream
from keras_encryip.errors import ArgumentError, ForeignKeyError, FormatError, RevokedKeyError, SignatureError, WrongModelError
from keras_encryip.labels.ciphertext import DIGEST_BYTES

FORMAT: Final = "encryip-sealed-folder"
VERSION: Final = 1
MAX_FILES: Final = 10_000
MAX_DEPTH: Final = 32
"""Folders in folders; of different ones, at most as many as files."""

MAX_HEAD_BYTES: Final = 64 << 10
MAX_INDEX_BYTES: Final = 16 << 20

_MAGIC: Final = b"encryip sealed folder\n"
_LENGTH_BYTES: Final = 4
_DOMAIN: Final = "sealed folder v1"
_PURPOSE: Final = "sealed folder v1"

_ODD: Final = frozenset('\\:*?"<>|')
"""Characters that mean something in a path on some system."""

_DEVICE: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that are no files on Windows."""

_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a sealed file says in the clear."""

    authority: str
    format: Literal["encryip-sealed-folder"]
    header: str
    issuer: str
    version: Literal[1]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: _Path
    size: Annotated[int, msgspec.Meta(ge=0)]


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the stream begins with: the model's name, empty folders, and files in order."""

    files: Annotated[list[_Entry], msgspec.Meta(max_length=MAX_FILES)]
    folders: Annotated[list[_Path], msgspec.Meta(max_length=MAX_FILES)]
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


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
    head = canonical_json(
        _Head(
            authority=encode_base64(authority),
            format=FORMAT,
            header=encode_base64(header.to_bytes()),
            issuer=encode_base64(issuer),
            version=VERSION,
        )
    )
    start = _MAGIC + len(head).to_bytes(_LENGTH_BYTES, "big") + head
    digest = SHA256.new(start)

    text = canonical_json(index)

    def plaintext(advance: Callable[[int], None]) -> Iterator[bytes]:
        begin = len(text).to_bytes(_LENGTH_BYTES, "big") + text
        digest.update(begin)
        yield begin
        for part in _contents(folder, index):
            digest.update(part)
            advance(len(part))
            yield part
        yield sign(_DOMAIN, digest.digest())

    def fill(draft: Path) -> None:
        total = sum(entry.size for entry in index.files)
        bound = SHA256.new(start).digest()
        with draft.open("wb") as file, progress_bar(f"sealing {folder.name}", total) as advance:
            file.write(start)
            for chunk in seal_stream(secret.derive(_PURPOSE), plaintext(advance), bound):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

    make_new_file(path, fill)


def list_folder(directory: str | os.PathLike[str], model: str) -> Index:
    """What there is to seal, checked as its readers will check it.

    Args:
        directory: what to seal.
        model: its name, for the bundles' scope.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise ArgumentError(f"{str(folder)!r} cannot be sealed: it is not a folder.")
    problem = ""
    try:
        files, folders = _entries(folder)
        index = Index(files=files, folders=folders, model=model)
        msgspec.convert(msgspec.to_builtins(index), Index)
        _check(index)
        if len(canonical_json(index)) > MAX_INDEX_BYTES:
            problem = "its list of files is too long"
    except OSError as error:
        problem = f"{error.filename!r}: {error.strerror or type(error).__name__}"
    except (FormatError, msgspec.ValidationError) as error:
        problem = str(error)
    if problem:
        raise ArgumentError(f"{str(folder)!r} cannot be sealed: {problem.rstrip('.')}.")
    return index


def _entries(folder: Path) -> tuple[list[_Entry], list[str]]:
    """Files, and folders without anything in them."""
    files, folders = [], []
    for place, inner, names in os.walk(folder, onerror=_raised):
        for name in (*inner, *names):
            path = Path(place, name)
            relative, found = path.relative_to(folder).as_posix(), path.lstat()
            if stat.S_ISREG(found.st_mode):
                files.append(_Entry(relative, found.st_size))
            elif not stat.S_ISDIR(found.st_mode):
                raise FormatError(f"It has a link or special file: {relative!r}")
            elif not any(path.iterdir()):
                folders.append(relative)
    return sorted(files, key=lambda entry: entry.path), sorted(folders)


def _raised(error: OSError) -> None:
    raise error


def _contents(folder: Path, index: Index) -> Iterator[bytes]:
    """The files' bytes in order; a file of another size than listed is an error."""
    for entry in index.files:
        left, reason = entry.size, ""
        try:
            descriptor = os.open(folder / entry.path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            with open(descriptor, "rb") as file:
                while part := file.read(min(CHUNK_BYTES, left + 1)):
                    left -= len(part)
                    if left < 0:
                        break
                    yield part
        except OSError as error:
            reason = error.strerror or type(error).__name__
        if reason:
            raise ArgumentError(f"Cannot read {entry.path!r} in {str(folder)!r}: {reason}.")
        if left:
            raise ArgumentError(f"The file {entry.path!r} changed while it was being sealed.")


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
        PassphraseError, KeyRefusedError: as for `KeyBundle.unlock`.

    Example:
    >>> unseal_folder(folder / "digits.sealed", folder / "opened", bundle, "correct horse")
    >>> verify_export(folder / "opened").format
    'encryip-manifest'
    """
    if not isinstance(bundle, KeyBundle):
        bundle = KeyBundle.read(bundle)
    name = os.fspath(path)
    problem: tuple[type[FormatError | SignatureError], str] | None = None
    try:
        with open(path, "rb") as file:
            _unseal(file, name, Path(directory), bundle, passphrase, private_key)
    except OSError as error:
        problem = FormatError, error.strerror or type(error).__name__
    except (FormatError, SignatureError) as error:
        problem = type(error), str(error)
    if problem:
        raise problem[0](f"Cannot open the sealed file {name!r}: {problem[1].rstrip('.')}.")


def _unseal(
    file: BinaryIO,
    name: str,
    target: Path,
    bundle: KeyBundle,
    passphrase: str | None,
    private_key: X25519PrivateKey | None,
) -> None:
    start, head = _read_head(file)
    authority = decode_base64(head.authority, what="authority", length=DIGEST_BYTES)
    issuer = decode_base64(head.issuer, what="issuer", length=PUBLIC_BYTES)
    header = Header.from_bytes(decode_base64(head.header, what="sealed file header"))
    if (authority, issuer) != (bundle.authority, bundle.issuer):
        raise ForeignKeyError(
            f"Key bundle {bundle.header.key_id} was issued by another authority "
            f"({bundle.header.issuer_name!r}) than the one that sealed {name!r}."
        )
    bundle.check_dates()
    key = bundle.unlock(passphrase, private_key)
    if key.z in header.nodes:
        raise RevokedKeyError(
            f"Key {key.key_id} was revoked before {name!r} was sealed. "
            "Ask the model's owner for a new key."
        )
    size = os.fstat(file.fileno()).st_size - len(start)
    secret = key.decapsulate(header).derive(_PURPOSE)
    chunks = unseal_stream(secret, _reader(file), SHA256.new(start).digest())
    stream = _Stream(chunks, SHA256.new(start))
    text = stream.exactly(int.from_bytes(stream.exactly(_LENGTH_BYTES), "big"), MAX_INDEX_BYTES)
    index = parse_canonical_json(text, Index, what="list of files", max_bytes=MAX_INDEX_BYTES)
    _check(index)
    total = sum(entry.size for entry in index.files)
    if sealed_size(_LENGTH_BYTES + len(text) + total + SIGNATURE_BYTES) != size:
        raise FormatError("The files that it lists do not add up to its size.")
    if not bundle.allows(index.model):
        raise WrongModelError(
            f"Key bundle {bundle.header.key_id} is not meant for model {index.model!r}."
        )

    def fill(draft: Path) -> None:
        for folder in index.folders:
            (draft / folder).mkdir(parents=True)
        with progress_bar(f"opening {Path(name).name}", total) as advance:
            for entry in index.files:
                _extract(stream, draft / entry.path, entry.size, advance)
        signed = stream.digest()
        signature = stream.exactly(SIGNATURE_BYTES)
        stream.end()
        verify(issuer, _DOMAIN, signed, signature, what="sealed file")

    make_new_folder(target, fill)


def _reader(file: BinaryIO) -> Callable[[int], bytes]:
    """A failure to read is told from one to write."""

    def read(count: int) -> bytes:
        reason = ""
        try:
            return file.read(count)
        except OSError as error:
            reason = error.strerror or type(error).__name__
        raise FormatError(reason)

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
        found, self._rest = self._rest[:most], self._rest[most:]
        self._digest.update(found)
        return found

    def exactly(self, count: int, most: int = CHUNK_BYTES) -> bytes:
        if count > most:
            raise FormatError(f"Its list of files is too large: {count} bytes.")
        found = bytearray()
        while len(found) < count:
            found += self.some(count - len(found))
        return bytes(found)

    def digest(self) -> bytes:
        return self._digest.digest()

    def end(self) -> None:
        """Nothing may follow."""
        if self._rest or any(self._chunks):
            raise FormatError("It holds more than it lists.")


def _check(index: Index) -> None:
    """Paths that stay inside the folder and are different places on any system, and not so many
    folders that making them would be an attack."""
    places: set[str] = set()
    folders: dict[str, str] = {}
    for name in [*(entry.path for entry in index.files), *index.folders]:
        parts = name.split("/")
        if not all(map(_is_plain, parts)):
            raise FormatError(f"The path {name!r} is not plain and relative")
        if len(parts) > MAX_DEPTH:
            raise FormatError(f"The path {name!r} is deeper than {MAX_DEPTH}")
        if _folded(name) in places:
            raise FormatError(f"The path {name!r} occurs twice, or differs in case only")
        places.add(_folded(name))
        for depth in range(1, len(parts)):
            outer = "/".join(parts[:depth])
            if folders.setdefault(_folded(outer), outer) != outer:
                raise FormatError(f"The folder {outer!r} occurs in two spellings")
        if len(folders) > MAX_FILES:
            raise FormatError(f"There are more than {MAX_FILES} folders")
    both = places & folders.keys()
    if both:
        raise FormatError(f"The path {min(both)!r} is both an entry and a folder of one")


def _is_plain(part: str) -> bool:
    """Whether a name is one on any system: no separator, device or control character."""
    odd = any(c in _ODD or unicodedata.category(c) in ("Cc", "Cs") for c in part)
    return bool(part) and part[-1] not in ". " and not odd and not _DEVICE.fullmatch(part)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
