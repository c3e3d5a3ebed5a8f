"""`verify_export`: a folder is whole, and is the one that the authority signed."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keras_encryip.crypto.encoding import canonical_json, encode_base64
from keras_encryip.errors import ExportError, ForeignKeyError, FormatError, SignatureError
from keras_encryip.formats import manifest as manifest_module
from keras_encryip.formats.manifest import FILE_NAME, make_manifest, verify_export
from keras_encryip.formats.version_folder import ASSETS

MANIFEST = ASSETS / FILE_NAME
CODEBOOK = ASSETS / "codebook.json"


def sign(folder: Path, world: Any, key: Any = None, codebook: Any = None) -> None:
    """Write the folder's manifest, as its authority or as another."""
    (folder / MANIFEST).unlink(missing_ok=True)
    key = key or world.authority.signing_key
    data = make_manifest(folder, codebook or world.codebook, key.sign)
    (folder / MANIFEST).write_bytes(data)


@pytest.fixture
def folder(world: Any, tmp_path: Path) -> Path:
    """Like an exported version folder: a graph, variables, the codebook and the manifest."""
    made = tmp_path / "digits" / "1"
    (made / "variables").mkdir(parents=True)
    (made / "saved_model.pb").write_bytes(b"graph")
    (made / "variables" / "variables.index").write_bytes(b"index")
    (made / "variables" / "empty").touch()
    shutil.copytree(world.model / ASSETS, made / ASSETS)
    sign(made, world)
    return made


@pytest.mark.parametrize("name", ["gpj.\u202eexe", "a\u200b", "a\nb", "\u2028", "folder\u200f/x"])
def test_names_that_nobody_sees_whole(folder: Path, world: Any, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    for use in (verify_export, lambda folder: sign(folder, world)):
        with pytest.raises(ExportError, match=r"has a name with hidden characters: '.*\\"):
            use(folder)


def test_whole_folder(folder: Path, world: Any) -> None:
    issuer = world.authority.signing_key.public_bytes()
    manifest = verify_export(folder, issuer=issuer)
    assert manifest == verify_export(str(folder))
    assert manifest.format == "encryip-manifest"
    assert manifest.version == 1
    assert manifest.issuer == encode_base64(issuer)
    assert manifest.codebook_id == world.codebook.codebook_id.hex()
    codebook = (folder / CODEBOOK).read_bytes()
    assert [(f.path, f.size, f.sha256) for f in manifest.files] == [
        ("assets.extra/encryip/codebook.json", len(codebook), hashlib.sha256(codebook).hexdigest()),
        ("saved_model.pb", 5, hashlib.sha256(b"graph").hexdigest()),
        ("variables/empty", 0, hashlib.sha256(b"").hexdigest()),
        ("variables/variables.index", 5, hashlib.sha256(b"index").hexdigest()),
    ]


def test_folder_can_be_moved(folder: Path) -> None:
    moved = folder.parent.parent / "served" / "7"
    shutil.copytree(folder, moved)
    verify_export(moved)


def test_large_files_are_read_in_pieces(
    folder: Path, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_module, "_CHUNK", 4)
    (folder / "saved_model.pb").write_bytes(b"0123456789")
    sign(folder, world)
    entry = verify_export(folder).files[1]
    assert (entry.size, entry.sha256) == (10, hashlib.sha256(b"0123456789").hexdigest())


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def touch(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.touch()


def link(path: Path) -> None:
    """The same content, but by a link that can be pointed elsewhere later."""
    moved = path.parent.parent.parent / "elsewhere"
    path.rename(moved)
    path.symlink_to(moved)


@pytest.mark.parametrize(
    ("spoil", "name", "message"),
    [
        (change, "saved_model.pb", "file 'saved_model.pb' in .*/digits/1' was changed"),
        (change, "variables/variables.index", "file 'variables/variables.index' .* was changed"),
        (change, CODEBOOK, "file 'assets.extra/encryip/codebook.json' .* was changed"),
        (lambda p: p.write_bytes(b"graphs"), "saved_model.pb", "'saved_model.pb' .* was changed"),
        (lambda p: p.write_bytes(b"grap"), "saved_model.pb", "'saved_model.pb' .* was changed"),
        (lambda p: p.write_bytes(b"x"), "variables/empty", "'variables/empty' .* was changed"),
        (Path.unlink, "saved_model.pb", "lacks the file 'saved_model.pb'. Copy the export again"),
        (Path.unlink, "variables/empty", "lacks the file 'variables/empty'"),
        (Path.unlink, CODEBOOK, "lacks the file 'assets.extra/encryip/codebook.json'"),
        (touch, "keys.txt", "has a file that does not belong to it: 'keys.txt'"),
        (touch, ".hidden", "does not belong to it: '.hidden'"),
        (touch, "assets/deep", "does not belong to it: 'assets/deep'"),
        (touch, ASSETS / "manifest.json.bak", "does not belong to it: '.*manifest.json.bak'"),
        (touch, "manifest.json", "does not belong to it: 'manifest.json'"),
        (link, "saved_model.pb", "has a link or special file: 'saved_model.pb'"),
        (link, "variables", "has a link or special file: 'variables'"),
        (link, MANIFEST, "has a link or special file: 'assets.extra/encryip/manifest.json'"),
        (os.mkfifo, "pipe", "has a link or special file: 'pipe'"),
        (lambda p: p.symlink_to("nowhere"), "dangling", "link or special file: 'dangling'"),
    ],
    ids=lambda v: getattr(v, "__name__", None) if callable(v) else None,
)
def test_spoiled_folder(
    spoil: Callable[[Path], Any], name: Any, message: str, folder: Path
) -> None:
    spoil(folder / name)
    with pytest.raises(ExportError, match=message):
        verify_export(folder)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"Cannot read the manifest .*: No such file"):
        verify_export(tmp_path)


# --- forged --------------------------------------------------------------------------


def rewrite(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    file = json.loads((folder / MANIFEST).read_bytes())
    edit(file)
    (folder / MANIFEST).write_bytes(canonical_json(file))


FORGED = "signature of the manifest is wrong: it was changed, or is forged"


@pytest.mark.parametrize(
    "edit",
    [
        lambda file: file["manifest"]["files"].pop(),
        lambda file: file["manifest"]["files"][1].update(sha256="0" * 64),
        lambda file: file["manifest"]["files"][1].update(size=6),
        lambda file: file["manifest"]["files"].append(
            {"path": "extra", "sha256": "0" * 64, "size": 0}
        ),
        lambda file: file["manifest"].update(codebook_id="0" * 32),
        lambda file: file["manifest"].update(created_at="2020-01-01T00:00:00Z"),
        lambda file: file.update(signature=encode_base64(bytes(64))),
    ],
    ids=["drop-file", "digest", "size", "add-file", "codebook", "date", "signature"],
)
def test_edited_manifest(edit: Callable[[dict[str, Any]], Any], folder: Path) -> None:
    rewrite(folder, edit)
    with pytest.raises(SignatureError, match=FORGED):
        verify_export(folder)


def test_issuer_replaced_without_its_key(folder: Path, make_authority: Any) -> None:
    other = encode_base64(make_authority().signing_key.public_bytes())
    rewrite(folder, lambda file: file["manifest"].update(issuer=other))
    with pytest.raises(SignatureError, match=FORGED):
        verify_export(folder)


def test_signed_by_another_authority(folder: Path, world: Any, make_authority: Any) -> None:
    """A stranger can sign a folder, but not as the expected issuer, and not the codebook."""
    (folder / "saved_model.pb").write_bytes(b"other graph")
    stranger = make_authority().signing_key
    named = replace(world.codebook, issuer=stranger.public_bytes())
    sign(folder, world, key=stranger, codebook=named)
    issuer = world.authority.signing_key.public_bytes()
    with pytest.raises(ForeignKeyError, match="was signed by another authority than expected"):
        verify_export(folder, issuer=issuer)
    with pytest.raises(ForeignKeyError, match="codebook was made by another authority"):
        verify_export(folder, issuer=stranger.public_bytes())
    with pytest.raises(ForeignKeyError, match="codebook was made by another authority"):
        verify_export(folder)


def test_forged_codebook(folder: Path, world: Any) -> None:
    """Even a rightly signed manifest does not make a forged codebook good."""
    text = (folder / CODEBOOK).read_text()
    signature = json.loads(text)["signature"]
    (folder / CODEBOOK).write_text(text.replace(signature, encode_base64(bytes(64))))
    sign(folder, world)
    with pytest.raises(SignatureError, match="signature of the codebook is wrong"):
        verify_export(folder)


def test_codebook_of_another_model(folder: Path, world: Any) -> None:
    another = world.authority.codebook(world.assignment, model="faces")
    sign(folder, world, codebook=another)
    with pytest.raises(ExportError, match=r"codebook in .* is not the one of its manifest"):
        verify_export(folder)


ENTRY = {"path": "p", "sha256": "0" * 64, "size": 0}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(
            lambda file: file["manifest"].pop("files"),
            "missing required field `files`",
            id="no-files",
        ),
        pytest.param(
            lambda file: file["manifest"].pop("issuer"),
            "missing required field `issuer`",
            id="no-issuer",
        ),
        pytest.param(
            lambda file: file["manifest"].pop("format"),
            "missing required field `format`",
            id="no-format",
        ),
        pytest.param(
            lambda file: file["manifest"].pop("version"),
            "missing required field `version`",
            id="no-version",
        ),
        pytest.param(
            lambda file: file.pop("signature"),
            "missing required field `signature`",
            id="no-signature",
        ),
        pytest.param(
            lambda file: file["manifest"].update(version=2), "Invalid enum value 2", id="version-2"
        ),
        pytest.param(
            lambda file: file["manifest"].update(format="encryip-codebook"),
            "Invalid enum value 'encryip-codebook'",
            id="format",
        ),
        pytest.param(
            lambda file: file["manifest"].update(note="hi"),
            "unknown field `note`",
            id="unknown-field",
        ),
        pytest.param(
            lambda file: file.update(note="hi"), "unknown field `note`", id="unknown-outer-field"
        ),
        pytest.param(
            lambda file: file["manifest"].update(codebook_id="A" * 32),
            "codebook_id",
            id="codebook-uppercase",
        ),
        pytest.param(
            lambda file: file["manifest"]["files"][0].update(sha256="a" * 63),
            "sha256",
            id="digest-short",
        ),
        pytest.param(
            lambda file: file["manifest"]["files"][0].update(sha256="A" * 64),
            "sha256",
            id="digest-uppercase",
        ),
        pytest.param(
            lambda file: file["manifest"]["files"][0].update(path=""), "path", id="path-empty"
        ),
        pytest.param(
            lambda file: file["manifest"]["files"][0].update(size=-1), "size", id="size-negative"
        ),
        pytest.param(
            lambda file: file["manifest"]["files"][0].update(size="5"), "size", id="size-text"
        ),
        pytest.param(
            lambda file: file["manifest"].update(issuer="AAAA"), "issuer", id="issuer-short"
        ),
        pytest.param(
            lambda file: file.update(signature="AAAA"), "manifest signature", id="signature-short"
        ),
        pytest.param(
            lambda file: file["manifest"].update(files=[ENTRY] * 10_001),
            "length <= 10000",
            id="too-many-files",
        ),
    ],
)
def test_malformed_manifest(
    edit: Callable[[dict[str, Any]], Any], message: str, folder: Path
) -> None:
    rewrite(folder, edit)
    with pytest.raises(FormatError, match=message):
        verify_export(folder)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"null"])
def test_manifest_that_is_no_json_object(data: bytes, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(data)
    with pytest.raises(FormatError, match="manifest"):
        verify_export(folder)


def test_manifest_of_another_spelling(folder: Path) -> None:
    """Only the canonical bytes are read, so that nothing hides between them."""
    data = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(data.replace(b'","', b'", "', 1))
    with pytest.raises(FormatError, match="manifest"):
        verify_export(folder)


def test_oversized_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(FormatError, match=r"manifest .* is too large: more than 100 bytes"):
        verify_export(folder)
