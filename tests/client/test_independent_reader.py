"""A reader written from the pages on the formats alone opens the vectors.

Nothing of the package is imported here: what a port to another language needs must be in
docs/codebook.md, docs/key-bundle.md and docs/serving.md.
"""

import hashlib
import hmac
import json
import struct
import unicodedata
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from Crypto.Cipher import AES, ChaCha20_Poly1305
from Crypto.PublicKey import ECC
from Crypto.Signature import eddsa

Q = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
FOLDER = Path(__file__).parents[1] / "vectors"
VECTORS = json.loads((FOLDER / "codebook.json").read_text(encoding="ascii"))
HOSTED = json.loads((FOLDER / "hosted.json").read_text(encoding="ascii"))


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def tagged(tag: bytes, data: bytes) -> bytes:
    return hashlib.sha256(tag + b"\0" + data).digest()


def check_signature(domain: bytes, message: bytes, issuer: bytes, signature: bytes) -> None:
    signed = b"encryip " + domain + b"\0" + hashlib.sha512(message).digest()
    eddsa.new(eddsa.import_public_key(issuer), "rfc8032").verify(signed, signature)


def unseal(key: bytes, sealed: bytes, associated_data: bytes) -> bytes:
    cipher = AES.new(key, AES.MODE_GCM, nonce=sealed[:12])
    cipher.update(associated_data)
    return cipher.decrypt_and_verify(sealed[12:-16], sealed[-16:])


def open_header(user_key: bytes, header: bytes, purpose: bytes) -> bytes:
    z, v = (int.from_bytes(user_key[i : i + 32], "big") for i in (0, 32))
    t = header[0]
    nodes = [z] + [int.from_bytes(header[1 + 32 * j : 33 + 32 * j], "big") for j in range(t)]
    start = 1 + 32 * t
    points = [
        ECC.import_key(header[start + 33 * j : start + 33 * j + 33], curve_name="P-256").pointQ
        for j in range(t + 1)
    ]
    lambdas = []
    for n_i in nodes:
        value = 1
        for n_k in nodes:
            if n_k != n_i:
                value = value * n_k * pow(n_k - n_i, -1, Q) % Q
        lambdas.append(value)
    secret = points[0] * (lambdas[0] * v % Q)
    for coefficient, point in zip(lambdas[1:], points[1:], strict=True):
        secret = secret + point * coefficient
    material = bytes([2 + int(secret.y) % 2]) + int(secret.x).to_bytes(32, "big")
    extracted = hmac.digest(tagged(b"encryip header v1", header), material, "sha256")
    return hmac.digest(extracted, purpose + b"\x01", "sha256")


def mask(key: bytes, label: int, num_classes: int) -> int:
    block = AES.new(key, AES.MODE_ECB).encrypt(label.to_bytes(16, "big"))
    return int.from_bytes(block, "big") % num_classes


@pytest.fixture(scope="module")
def bundle() -> dict[str, Any]:
    begin, line, end, rest = VECTORS["key_bundle"].split("\n")
    assert (begin, end, rest) == (
        "-----BEGIN ENCRYIP KEY BUNDLE-----",
        "-----END ENCRYIP KEY BUNDLE-----",
        "",
    )
    file = json.loads(line)
    assert canonical(file).decode() == line
    return file


@pytest.fixture(scope="module")
def user_key(bundle: dict[str, Any]) -> bytes:
    header, body = bundle["bundle"]["header"], bundle["bundle"]["body"]
    key = hashlib.scrypt(
        unicodedata.normalize("NFC", VECTORS["passphrase"]).encode("utf-8"),
        salt=b64decode(body["salt"]),
        n=2 ** body["scrypt_log2_n"],
        r=8,
        p=1,
        dklen=32,
        maxmem=1 << 27,
    )
    return unseal(key, b64decode(body["sealed"]), canonical(header))


@pytest.fixture(scope="module")
def codebook() -> dict[str, Any]:
    file = json.loads(VECTORS["codebook"])
    assert canonical(file).decode() == VECTORS["codebook"]
    return file


def test_key_bundle(bundle: dict[str, Any], user_key: bytes) -> None:
    header = bundle["bundle"]["header"]
    check_signature(
        b"key bundle v1",
        canonical(bundle["bundle"]),
        b64decode(header["issuer"]),
        b64decode(bundle["signature"]),
    )
    assert canonical(header).decode() == VECTORS["bundle_associated_data"]
    assert user_key.hex() == VECTORS["user_key"]
    assert tagged(b"encryip key id v1", user_key[:32]).hex()[:16] == header["key_id"]
    public_key = bytes.fromhex(VECTORS["public_key"])
    assert tagged(b"encryip public key v1", public_key) == b64decode(header["authority"])


def test_codebook(bundle: dict[str, Any], codebook: dict[str, Any], user_key: bytes) -> None:
    body, header = codebook["body"], bundle["bundle"]["header"]
    assert (body["authority"], body["issuer"]) == (header["authority"], header["issuer"])
    issuer, signature = b64decode(body["issuer"]), b64decode(codebook["signature"])
    check_signature(b"codebook v1", canonical(body), issuer, signature)
    access = open_header(user_key, b64decode(body["access"]["header"]), b"access metadata v1")
    assert access.hex() == VECTORS["access_key"]
    context = b64decode(body["codebook_id"]) + b64decode(body["authority"])
    metadata = unseal(access, b64decode(body["access"]["sealed"]), context)
    assert metadata.decode() == VECTORS["metadata"]
    values, k = b64decode(body["values"]), body["num_classes"]
    table, masks, label = [], [], 0
    for block, expected in zip(body["blocks"], VECTORS["mask_keys"], strict=True):
        key = open_header(user_key, b64decode(block["header"]), b"label mask v1")
        assert key.hex() == expected
        for _ in range(block["size"]):
            masks.append(mask(key, label, k))
            table.append((int.from_bytes(values[4 * label : 4 * label + 4], "big") - masks[-1]) % k)
            label += 1
    assert masks == VECTORS["masks"]
    assert table == VECTORS["table"]


def test_label_ciphertexts(user_key: bytes) -> None:
    for text, expected in zip(VECTORS["ciphertexts"], VECTORS["classes"], strict=True):
        data = bytes.fromhex(text)
        assert data[0] == 1
        k, label, value = (
            int.from_bytes(data[at], "big")
            for at in (slice(49, 53), slice(-8, -4), slice(-4, None))
        )
        key = open_header(user_key, data[53:-8], b"label mask v1")
        assert (value - mask(key, label, k)) % k == expected
        assert VECTORS["table"][label] == expected


def test_encrypted_responses(codebook: dict[str, Any], user_key: bytes) -> None:
    body = codebook["body"]
    key = open_header(user_key, b64decode(body["access"]["header"]), b"hosted responses v1")
    assert key.hex() == HOSTED["response_key"]
    assert b64decode(body["codebook_id"]).hex() == HOSTED["associated_data"]
    for words, values, probabilities, label in zip(
        *(HOSTED[name] for name in ("responses", "values", "probabilities", "labels")), strict=True
    ):
        data = struct.pack(f"<{len(words)}i", *words)
        cipher = ChaCha20_Poly1305.new(key=key, nonce=data[:24])
        cipher.update(b64decode(body["codebook_id"]))
        opened = struct.unpack("<32f", cipher.decrypt_and_verify(data[24:-16], data[-16:]))
        assert list(opened) == values
        sums = [0.0] * body["num_classes"]
        for label_class, value in zip(VECTORS["table"], values, strict=True):
            sums[label_class] += value
        assert sums == pytest.approx(probabilities, abs=1e-8)
        assert max(range(len(sums)), key=sums.__getitem__) == label
