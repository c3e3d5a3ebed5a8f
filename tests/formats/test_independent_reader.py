"""A reader written from the pages on the formats alone opens the vectors.

Nothing of the package is imported here: what a port to another language needs must be in
docs/formats/codebook.md, docs/formats/key-bundle.md and docs/formats/responses.md.
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
from Crypto.Protocol import HPKE
from Crypto.Protocol.DH import import_x25519_private_key
from Crypto.PublicKey import ECC
from Crypto.Signature import eddsa

P = 2**255 - 19
Q = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
FOLDER = Path(__file__).parents[1] / "vectors"
VECTORS = json.loads((FOLDER / "codebook.json").read_text(encoding="ascii"))
TO_PUBLIC_KEY = json.loads((FOLDER / "public_key_bundle.json").read_text(encoding="ascii"))
SLOTS = json.loads((FOLDER / "slots.json").read_text(encoding="ascii"))
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


def aes(key: bytes, block: bytes) -> bytes:
    return AES.new(key, AES.MODE_ECB).encrypt(block)


def label_key_and_slot(labels_key: bytes, label: int, masked_slot: int) -> tuple[bytes, int]:
    blocks = [aes(labels_key, (2 * label + i).to_bytes(16, "big")) for i in (0, 1)]
    return blocks[0], masked_slot ^ int.from_bytes(blocks[1][:2], "big")


def mask(slot_key: bytes, label_key: bytes, num_classes: int) -> int:
    digest = tagged(b"encryip label mask v2", slot_key + label_key)
    return int.from_bytes(digest[:16], "big") % num_classes


class Reader:
    """A user's keys as they stand in a bundle with the role `read`."""

    def __init__(self, keys: bytes, roles: list[str]) -> None:
        assert roles[0] == "read"
        self.point = keys[:64]
        rest = keys[32 + 32 * len(roles) :]
        slots, remainder = divmod(8 * len(rest), 129)
        assert remainder == 0
        assert 256 <= slots <= 4096
        self.codeword, self.slot_keys = rest[: slots // 8], rest[slots // 8 :]

    def bit(self, slot: int) -> int:
        return self.codeword[slot // 8] >> (7 - slot % 8) & 1

    def read(self, unmasked: int, values: tuple[int, int], label_key: bytes, k: int) -> int:
        slot = unmasked % (8 * len(self.codeword))
        slot_key = self.slot_keys[16 * slot : 16 * slot + 16]
        return (values[self.bit(slot)] - mask(slot_key, label_key, k)) % k


def x25519(scalar: bytes, u: bytes) -> bytes:
    """The ladder of RFC 7748, section 5."""
    k = int.from_bytes(scalar, "little") & (1 << 255) - 8 | 1 << 254
    x1 = int.from_bytes(u, "little") & (1 << 255) - 1
    x2, z2, x3, z3, swapped = 1, 0, x1, 1, 0
    for t in reversed(range(255)):
        bit = k >> t & 1
        if bit != swapped:
            x2, z2, x3, z3, swapped = x3, z3, x2, z2, bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        x3, z3 = (d * a + c * b) ** 2 % P, x1 * (d * a - c * b) ** 2 % P
        aa, bb = a * a % P, b * b % P
        x2, z2 = aa * bb % P, (aa - bb) * (aa + 121665 * (aa - bb)) % P
    if swapped:
        x2, z2 = x3, z3
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


def extract(suite: bytes, salt: bytes, label: bytes, material: bytes) -> bytes:
    return hmac.digest(salt, b"HPKE-v1" + suite + label + material, "sha256")


def expand(suite: bytes, key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    labelled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(key, labelled + b"\x01", "sha256")[:length]


def hpke_key_and_nonce(
    private_key: bytes, encapsulated: bytes, info: bytes, *, aead: int, key_length: int
) -> tuple[bytes, bytes]:
    """RFC 9180, base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256; sections 4.1 and 5.1."""
    kem = b"KEM" + (0x20).to_bytes(2, "big")
    base = (9).to_bytes(32, "little")
    extracted = extract(kem, b"", b"eae_prk", x25519(private_key, encapsulated))
    context = encapsulated + x25519(private_key, base)
    shared = expand(kem, extracted, b"shared_secret", context, 32)
    suite = b"HPKE" + b"".join(part.to_bytes(2, "big") for part in (0x20, 1, aead))
    context = b"\0" + extract(suite, b"", b"psk_id_hash", b"")
    context += extract(suite, b"", b"info_hash", info)
    secret = extract(suite, shared, b"secret", b"")
    key = expand(suite, secret, b"key", context, key_length)
    return key, expand(suite, secret, b"base_nonce", context, 12)


def unarmour(text: str) -> dict[str, Any]:
    begin, line, end, rest = text.split("\n")
    assert (begin, end, rest) == (
        "-----BEGIN ENCRYIP KEY BUNDLE-----",
        "-----END ENCRYIP KEY BUNDLE-----",
        "",
    )
    file = json.loads(line)
    assert canonical(file).decode() == line
    return file


def unlock(text: str) -> bytes:
    """What the vectors' passphrase opens."""
    bundle = unarmour(text)["bundle"]
    header, body = bundle["header"], bundle["body"]
    assert header["opens_with"] == "passphrase"
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
def bundle() -> dict[str, Any]:
    return unarmour(VECTORS["key_bundle"])


@pytest.fixture(scope="module")
def reader(bundle: dict[str, Any]) -> Reader:
    return Reader(unlock(VECTORS["key_bundle"]), bundle["bundle"]["header"]["roles"])


@pytest.fixture(scope="module")
def codebook() -> dict[str, Any]:
    file = json.loads(VECTORS["codebook"])
    assert canonical(file).decode() == VECTORS["codebook"]
    return file


def test_key_bundle(bundle: dict[str, Any], reader: Reader) -> None:
    header = bundle["bundle"]["header"]
    check_signature(
        b"key bundle v3",
        canonical(bundle["bundle"]),
        b64decode(header["issuer"]),
        b64decode(bundle["signature"]),
    )
    assert (header["version"], header["roles"]) == (3, ["read", "run"])
    assert canonical(header).decode() == VECTORS["bundle_associated_data"]
    assert reader.point.hex() == VECTORS["user_key"]
    keys = unlock(VECTORS["key_bundle"])
    assert keys.hex() == VECTORS["bundle_keys"]
    assert (keys[:32] + keys[64:96]).hex() == VECTORS["run_key"]
    assert reader.codeword.hex() == VECTORS["codeword"]
    assert reader.slot_keys.hex() == VECTORS["slot_keys"]
    assert tagged(b"encryip key id v1", keys[:32]).hex()[:16] == header["key_id"]
    public_key = bytes.fromhex(VECTORS["public_key"])
    assert tagged(b"encryip public key v1", public_key) == b64decode(header["authority"])


def test_key_bundle_to_a_public_key() -> None:
    file = unarmour(TO_PUBLIC_KEY["key_bundle"])
    header, body = file["bundle"]["header"], file["bundle"]["body"]
    assert (header["opens_with"], header["roles"]) == ("private key", ["run"])
    issuer, signature = b64decode(header["issuer"]), b64decode(file["signature"])
    check_signature(b"key bundle v3", canonical(file["bundle"]), issuer, signature)
    assert canonical(header).decode() == TO_PUBLIC_KEY["bundle_associated_data"]
    private_key = bytes.fromhex(TO_PUBLIC_KEY["private_key"])
    public_key = x25519(private_key, (9).to_bytes(32, "little"))
    assert b64decode(body["recipient"]) == public_key
    der = bytes.fromhex("302a300506032b656e032100") + public_key
    digest = hashlib.sha256(der).hexdigest()
    assert TO_PUBLIC_KEY["fingerprint"].replace(" ", "") == digest[:32]
    assert b64decode(TO_PUBLIC_KEY["public_key_pem"].split("\n")[1]) == der
    key, nonce = hpke_key_and_nonce(
        private_key,
        b64decode(body["encapsulated"]),
        b"encryip key bundle v3",
        aead=2,
        key_length=32,
    )
    assert (key.hex(), nonce.hex()) == (TO_PUBLIC_KEY["hpke_key"], TO_PUBLIC_KEY["hpke_nonce"])
    keys = unseal(key, nonce + b64decode(body["sealed"]), canonical(header))
    assert len(keys) == 64
    assert keys.hex() == TO_PUBLIC_KEY["bundle_keys"] == TO_PUBLIC_KEY["run_key"]
    assert tagged(b"encryip key id v1", keys[:32]).hex()[:16] == header["key_id"]


# RFC 9180, appendix A.1.1, sequence number 0. Only the AEAD is another (AES-128-GCM).
RFC_PRIVATE = bytes.fromhex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8")
RFC_ENCAPSULATED = bytes.fromhex("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431")
RFC_CIPHERTEXT = bytes.fromhex(
    "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a"
)
RFC_INFO, RFC_ASSOCIATED = b"Ode on a Grecian Urn", b"Count-0"
RFC_PLAINTEXT = b"Beauty is truth, truth beauty"


def test_this_reader_opens_the_vector_of_rfc_9180() -> None:
    key, nonce = hpke_key_and_nonce(RFC_PRIVATE, RFC_ENCAPSULATED, RFC_INFO, aead=1, key_length=16)
    assert key.hex() == "4531685d41d65f03dc48f6b8302c05b0"
    assert nonce.hex() == "56d890e5accaaf011cff4b7d"
    assert unseal(key, nonce + RFC_CIPHERTEXT, RFC_ASSOCIATED) == RFC_PLAINTEXT


def test_pycryptodome_opens_the_vector_of_rfc_9180() -> None:
    cipher = HPKE.new(
        receiver_key=import_x25519_private_key(RFC_PRIVATE),
        aead_id=HPKE.AEAD.AES128_GCM,
        enc=RFC_ENCAPSULATED,
        info=RFC_INFO,
    )
    assert cipher.unseal(RFC_CIPHERTEXT, RFC_ASSOCIATED) == RFC_PLAINTEXT


def read_table(
    codebook: dict[str, Any], reader: Reader
) -> tuple[list[bytes], list[int], list[int]]:
    """Every label's key, slot and class."""
    body = codebook["body"]
    slots, values, k = b64decode(body["slots"]), b64decode(body["values"]), body["num_classes"]
    assert len(values) == 4 * len(slots)
    labels_key = open_header(reader.point, b64decode(body["header"]), b"label keys v2")
    keys, found, table = [], [], []
    for j in range(len(slots) // 2):
        masked, e0, e1 = struct.unpack(">HII", slots[2 * j : 2 * j + 2] + values[8 * j : 8 * j + 8])
        label_key, slot = label_key_and_slot(labels_key, j, masked)
        keys.append(label_key)
        found.append(slot)
        table.append(reader.read(slot, (e0, e1), label_key, k))
    return keys, found, table


def test_codebook(bundle: dict[str, Any], codebook: dict[str, Any], reader: Reader) -> None:
    body, header = codebook["body"], bundle["bundle"]["header"]
    assert (body["authority"], body["issuer"]) == (header["authority"], header["issuer"])
    issuer, signature = b64decode(body["issuer"]), b64decode(codebook["signature"])
    check_signature(b"codebook v2", canonical(body), issuer, signature)
    kem_header = b64decode(body["header"])
    metadata_key = open_header(reader.point, kem_header, b"model metadata v2")
    assert metadata_key.hex() == VECTORS["metadata_key"]
    context = b64decode(body["codebook_id"]) + b64decode(body["authority"])
    metadata = unseal(metadata_key, b64decode(body["metadata"]), context)
    assert metadata.decode() == VECTORS["metadata"]
    labels_key = open_header(reader.point, kem_header, b"label keys v2")
    assert labels_key.hex() == VECTORS["labels_key"]
    keys, slots, table = read_table(codebook, reader)
    assert [key.hex() for key in keys] == VECTORS["label_keys"]
    assert (slots, table) == (VECTORS["slots"], VECTORS["table"])
    assert len(set(slots)) == 32  # of 256, in a codebook of 32 labels
    masked = struct.unpack(">32H", b64decode(body["slots"]))
    assert [a ^ b for a, b in zip(masked, slots, strict=True)] == VECTORS["slot_masks"]
    slot_keys = [reader.slot_keys[16 * slot : 16 * slot + 16] for slot in slots]
    masks = [mask(a, b, body["num_classes"]) for a, b in zip(slot_keys, keys, strict=True)]
    assert masks == VECTORS["masks"]


def test_another_user_reads_trace_labels_in_another_way(codebook: dict[str, Any]) -> None:
    keys = unlock(VECTORS["reader_bundle"])
    assert keys.hex() == VECTORS["reader_bundle_keys"]
    header = unarmour(VECTORS["reader_bundle"])["bundle"]["header"]
    assert header["roles"] == ["read"]
    _, slots, table = read_table(codebook, Reader(keys, header["roles"]))
    assert (slots, table) == (VECTORS["slots"], VECTORS["reader_table"])
    differ = sum(a != b for a, b in zip(table, VECTORS["table"], strict=True))
    assert 0 < differ <= 8  # T


def test_label_ciphertexts(reader: Reader) -> None:
    for text, expected in zip(VECTORS["ciphertexts"], VECTORS["classes"], strict=True):
        data = bytes.fromhex(text)
        assert data[0] == 2
        k = int.from_bytes(data[49:53], "big")
        masked, label, e0, e1 = struct.unpack(">HIII", data[-14:])
        labels_key = open_header(reader.point, data[53:-14], b"label keys v2")
        label_key, slot = label_key_and_slot(labels_key, label, masked)
        assert reader.read(slot, (e0, e1), label_key, k) == expected
        assert VECTORS["table"][label] == expected


def test_slots_of_an_authority() -> None:
    """What only the owner derives: slot keys, biases, codewords, commitments."""
    seed, count = bytes.fromhex(SLOTS["seed"]), SLOTS["slots"]
    slot_key, bias, codeword, slot_blind, codeword_blind = (
        hmac.digest(seed, b"encryip slots v1 " + purpose, "sha256")
        for purpose in (b"slot key", b"bias", b"codeword", b"slot blind", b"codeword blind")
    )
    keys = [aes(slot_key, i.to_bytes(16, "big")) for i in range(2 * count)]
    assert b"".join(keys).hex() == SLOTS["slot_keys"]
    thresholds = SLOTS["thresholds"]
    leaves = []
    for slot in range(count):
        common = int.from_bytes(aes(bias, slot.to_bytes(16, "big"))[:4], "big") >= 1 << 31
        assert thresholds[slot] == (3_387_333_910 if common else 907_633_386)
        digests = b"".join(tagged(b"encryip slot key v1", key) for key in keys[2 * slot :][:2])
        content = slot.to_bytes(2, "big") + thresholds[slot].to_bytes(4, "big")
        content += aes(slot_blind, slot.to_bytes(16, "big")) + digests
        leaves.append(tagged(b"encryip slot v1", content))
    assert tagged(b"encryip leaves v1", b"".join(leaves)).hex() == SLOTS["commitment"]
    assert all(leaves[o["slot"]].hex() == o["leaf"] for o in SLOTS["openings"])
    for user in SLOTS["users"]:
        bits, leaves = [], []
        for slot in range(count):
            block = bytes.fromhex(user["key_id"]) + slot.to_bytes(8, "big")
            bits.append(int.from_bytes(aes(codeword, block)[:4], "big") < thresholds[slot])
            content = slot.to_bytes(2, "big") + bytes([bits[-1]]) + aes(codeword_blind, block)
            leaves.append(tagged(b"encryip codeword v1", content))
        number = int("".join("01"[bit] for bit in bits), 2)
        assert number.to_bytes(count // 8, "big").hex() == user["codeword"]
        held = b"".join(keys[2 * slot + bit] for slot, bit in enumerate(bits))
        assert held.hex() == user["slot_keys"]
        assert tagged(b"encryip leaves v1", b"".join(leaves)).hex() == user["commitment"]
        assert all(leaves[o["slot"]].hex() == o["leaf"] for o in user["openings"])


def test_encrypted_responses(codebook: dict[str, Any], reader: Reader) -> None:
    body = codebook["body"]
    key = open_header(reader.point, b64decode(body["header"]), b"hosted responses v2")
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
