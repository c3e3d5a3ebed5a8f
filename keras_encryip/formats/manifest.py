"""What an exported folder must hold, file by file, signed by the authority."""

import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias, get_args

import msgspec
from Crypto.Hash import SHA256

from keras_encryip.crypto.encoding import (
    canonical_json,
    decode_base64,
    encode_base64,
    format_time,
    parse_canonical_json,
)
from keras_encryip.crypto.signing import PUBLIC_BYTES, SIGNATURE_BYTES, verify
from keras_encryip.errors import ExportError, ForeignKeyError
from keras_encryip.formats.atomic_files import open_file, read_bounded
from keras_encryip.formats.text import has_hidden
from keras_encryip.formats.version_folder import ASSETS, WARMUP, read_codebook
from keras_encryip.labels.codebook import Codebook

FORMAT: Final = "encryip-manifest"
VERSION: Final = 1
FILE_NAME: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 8 << 20
_BESIDE: Final = re.compile(
    r"\.DS_Store|\._.+|Thumbs\.db|desktop\.ini|\.directory|\.nfs[0-9a-f]{8,}", re.IGNORECASE
)
_DOMAIN: Final = "manifest v1"
_CHUNK: Final = 1 << 20

FolderWarning: TypeAlias = Literal[  # the one text, so that a forged manifest cannot say another
    "THIS FOLDER HOLDS THE RESPONSE KEY. IT IS FOR THE OWNER'S SERVER ALONE: WHOEVER READS IT CAN "
    "DECRYPT ALL RESPONSES OF THIS VERSION."
]
RESPONSE_KEY_INSIDE: Final[FolderWarning] = get_args(FolderWarning)[0]


class ManifestFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file: path relative to the folder with `/`, SHA-256 in hexadecimal, size in bytes."""

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    size: Annotated[int, msgspec.Meta(ge=0)]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The signed content of `manifest.json`.

    Attributes:
        codebook_id: hexadecimal, of the codebook beside it.
        created_at: UTC, `YYYY-MM-DDThh:mm:ssZ`.
        files: every file of the folder but the manifest, sorted by path.
        format, version: `"encryip-manifest"`, 1.
        issuer: base64 Ed25519 key of the authority.
        warning: of a folder that holds a secret; absent from others.
    """

    codebook_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    created_at: str
    files: Annotated[list[ManifestFile], msgspec.Meta(max_length=10_000)]
    format: Literal["encryip-manifest"]
    issuer: str
    version: Literal[1]
    warning: FolderWarning | msgspec.UnsetType = msgspec.UNSET


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    manifest: Manifest
    signature: str


def make_manifest(
    directory: Path,
    codebook: Codebook,
    sign: Callable[[str, bytes], bytes],
    warning: FolderWarning | None = None,
) -> bytes:
    """The bytes of `manifest.json` for all files now in a folder.

    Args:
        directory: the version folder, its codebook already inside.
        codebook: that codebook.
        sign: (domain, message) → 64-byte signature of the authority.
        warning: to whoever looks at the folder.
    """
    manifest = Manifest(
        codebook_id=codebook.codebook_id.hex(),
        created_at=format_time(datetime.now(UTC)),
        files=[
            ManifestFile(name, _sha256(path), path.stat().st_size)
            for name, path in sorted(_walk(directory))
        ],
        format=FORMAT,
        issuer=encode_base64(codebook.issuer),
        version=VERSION,
        warning=msgspec.UNSET if warning is None else warning,
    )
    signature = sign(_DOMAIN, canonical_json(manifest))
    return canonical_json(_File(manifest, encode_base64(signature)))


def verify_export(directory: str | os.PathLike[str], *, issuer: bytes | None = None) -> Manifest:
    """Check an exported folder: signature, every file's digest, nothing missing, nothing extra.

    Needs no key and no TensorFlow. What file systems and desktops put beside (`.DS_Store`,
    `Thumbs.db`, `.nfs…`) is passed over, and so are a host's own warm-up requests.

    Args:
        directory: a TF Serving version folder.
        issuer: the Ed25519 key (32 bytes) that must have signed it, e.g. of your key
            bundle. Without it, the folder is only shown to be whole under the key
            that it names itself.

    Returns:
        The `Manifest`.

    Raises:
        ExportError: names the changed, missing or extra file.
        ForeignKeyError: another authority signed it.
        SignatureError, FormatError: the manifest or codebook is forged or malformed.

    Example:
    >>> manifest = verify_export(folder / "digits" / "1", issuer=bundle.issuer)
    >>> "saved_model.pb" in [entry.path for entry in manifest.files]
    True
    """
    folder = Path(directory)
    path = folder / ASSETS / FILE_NAME
    data = read_bounded(path, what="manifest", max_bytes=MAX_MANIFEST_BYTES)
    file = parse_canonical_json(data, _File, what="manifest", max_bytes=MAX_MANIFEST_BYTES)
    manifest = file.manifest
    signer = decode_base64(manifest.issuer, what="issuer", length=PUBLIC_BYTES)
    if issuer is not None and issuer != signer:
        raise ForeignKeyError(f"{str(folder)!r} was signed by another authority than expected.")
    signature = decode_base64(file.signature, what="manifest signature", length=SIGNATURE_BYTES)
    verify(signer, _DOMAIN, canonical_json(manifest), signature, what="manifest")
    listed = {entry.path: entry for entry in manifest.files}
    present = dict(_walk(folder))
    for name in sorted(listed.keys() - present.keys()):
        raise ExportError(f"{str(folder)!r} lacks the file {name!r}. Copy the export again.")
    for name in sorted(present.keys() - listed.keys() - {WARMUP.as_posix()}):
        raise ExportError(f"{str(folder)!r} has a file that does not belong to it: {name!r}.")
    for name, entry in listed.items():
        if present[name].stat().st_size != entry.size or _sha256(present[name]) != entry.sha256:
            raise ExportError(f"The file {name!r} in {str(folder)!r} was changed.")
    codebook = read_codebook(folder)
    codebook.verify(signer)
    if codebook.codebook_id.hex() != manifest.codebook_id:
        raise ExportError(f"The codebook in {str(folder)!r} is not the one of its manifest.")
    return manifest


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """(relative name, path) of every file but the manifest and others' own; links are refused."""
    manifest = folder / ASSETS / FILE_NAME
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ExportError(f"{str(folder)!r} has a link or special file: {name!r}.")
        if has_hidden(name):
            raise ExportError(f"{str(folder)!r} has a name with hidden characters: {name!r}.")
        if path.is_file() and path != manifest and not is_beside(path.name):
            yield name, path


def is_beside(name: str) -> bool:
    """Whether a file is one that systems put beside others', and no model server reads."""
    return _BESIDE.fullmatch(name) is not None


def _sha256(path: Path) -> str:
    digest = SHA256.new()
    with open(open_file(path), "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
