"""Writes the test vectors: `python tests/vectors/make_vectors.py [--codebook] [--public-key]`.

`kem.json` comes from a deterministic source of bytes and is the same each time; so
does `hosted.json`, encrypted responses to the user of `codebook.json`.
`codebook.json` holds a codebook and a key bundle made with the system's
generator, and `public_key_bundle.json` a bundle made to a public key. They are
only written again when asked for; readers must go on accepting those that are
committed.
"""

import argparse
import json
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from Crypto.Cipher import ChaCha20_Poly1305
from Crypto.Protocol import HPKE

from keras_encryip.crypto.encoding import canonical_json, decode_base64
from keras_encryip.crypto.kem import Header, MasterKey, SharedSecret, UserKey
from keras_encryip.crypto.signing import SigningKey
from keras_encryip.crypto.tracing_header import TracingHeader
from keras_encryip.formats.key_bundle import INFO, KeyBundle, make_bundle
from keras_encryip.formats.key_pair import X25519PrivateKey
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.ciphertext import label_masks, mask_key
from keras_encryip.labels.codebook import Codebook, ModelMetadata

FOLDER = Path(__file__).parent
PURPOSES = ("label mask v1", "access metadata v1")
PASSPHRASE = "correct ho\u0308rse"  # decomposed: readers must normalise it to NFC


def counter_stream(seed: str) -> Callable[[int], bytes]:
    """Bytes of SHA-256(seed ‖ 0) ‖ SHA-256(seed ‖ 1) ‖ …, the counter as 8 bytes big-endian."""
    buffer = b""
    counter = 0

    def take(n: int) -> bytes:
        nonlocal buffer, counter
        while len(buffer) < n:
            buffer += sha256(seed.encode("ascii") + counter.to_bytes(8, "big")).digest()
            counter += 1
        taken, buffer = buffer[:n], buffer[n:]
        return taken

    return take


def kem_case(threshold: int, users: int, revoked: int) -> dict[str, Any]:
    """One authority, its users, a header that shuts the first ones out, a tracing header."""
    name = f"encryip kem vector t={threshold}"
    master = MasterKey.generate(threshold, random_bytes=counter_stream(f"{name} master"))
    keys = [master.issue(random_bytes=counter_stream(f"{name} user {i}")) for i in range(users)]
    out = [key.z for key in keys[:revoked]]
    header, secret = master.encapsulate(out, random_bytes=counter_stream(f"{name} header"))
    tracing = TracingHeader.generate(
        threshold, out, random_bytes=counter_stream(f"{name} tracing header")
    )
    return {
        "threshold": threshold,
        "seeds": f"{name} + ' master', ' user i', ' header', ' tracing header'",
        "master_key": master.secret_bytes().hex(),
        "public_key": master.public_key().to_bytes().hex(),
        "authority": master.public_key().digest.hex(),
        "users": [{"key_id": key.key_id, "user_key": key.secret_bytes().hex()} for key in keys],
        "revoked_users": list(range(revoked)),
        "header": _header(header),
        "keys": _keys(secret),
        "tracing_header": _header(tracing.header),
        "tracing_exponents": tracing.secret_bytes().hex(),
        "tracing_keys": [_keys(tracing.predict(key)) for key in keys[revoked:]],
    }


def codebook_case() -> dict[str, Any]:
    """A small model's codebook, a bundle that opens it, and every value on the way."""
    master, signing_key = MasterKey.generate(2), SigningKey.generate()
    alice, revoked, foreign = master.issue(), master.issue(), MasterKey.generate(2).issue()
    metadata = ModelMetadata(model="pets", class_names=["cat", "dog", "Käfer"], notes="vector")
    codebook, _ = Codebook.make(
        LabelAssignment.draw(3, 8, 8), metadata, master, signing_key, revoked=[revoked.z]
    )
    bundle = make_bundle(
        alice,
        passphrase=PASSPHRASE,
        subject="alice",
        issuer_name="ACME",
        authority=master.public_key().digest,
        signing_key=signing_key,
        not_before=datetime(2024, 1, 1, tzinfo=UTC),
        not_after=datetime(9999, 12, 31, tzinfo=UTC),
        scope=["pets"],
        scrypt_log2_n=14,
    )
    table = codebook.decode_table(alice)
    mask_keys = [mask_key(alice.decapsulate(header)) for header in codebook.headers]
    labels = [0, 1, 8, 17, codebook.num_labels - 1]
    return {
        "passphrase": PASSPHRASE,
        "key_bundle": bundle.decode("ascii"),
        "codebook": codebook.to_bytes().decode("ascii"),
        "public_key": master.public_key().to_bytes().hex(),
        "bundle_associated_data": canonical_json(KeyBundle.from_bytes(bundle).header).decode(),
        "user_key": alice.secret_bytes().hex(),
        "access_key": alice.decapsulate(codebook.access_header).derive(PURPOSES[1]).hex(),
        "metadata": canonical_json(metadata).decode("ascii"),
        "mask_keys": [key.hex() for key in mask_keys],
        "masks": [
            int(label_masks(mask_keys[codebook.block_of[j]], [j], codebook.num_classes)[0])
            for j in range(codebook.num_labels)
        ],
        "table": table.tolist(),
        "ciphertexts": [codebook.ciphertext(label).hex() for label in labels],
        "classes": [int(table[label]) for label in labels],
        "revoked_user_key": revoked.secret_bytes().hex(),
        "foreign_user_key": foreign.secret_bytes().hex(),
    }


def public_key_case() -> dict[str, Any]:
    """A key pair, a bundle made to it, and every value on the way."""
    master, own = MasterKey.generate(2), X25519PrivateKey.generate()
    alice = master.issue()
    bundle = make_bundle(
        alice,
        public_key=own.public_key,
        subject="alice",
        issuer_name="ACME",
        authority=master.public_key().digest,
        signing_key=SigningKey.generate(),
        not_before=datetime(2024, 1, 1, tzinfo=UTC),
        not_after=datetime(9999, 12, 31, tzinfo=UTC),
        scope=["pets"],
    )
    encapsulated = json.loads(bundle.splitlines()[1])["bundle"]["body"]["encapsulated"]
    context = HPKE.new(
        receiver_key=own._key,
        aead_id=HPKE.AEAD.AES256_GCM,
        enc=decode_base64(encapsulated, what="encapsulated"),
        info=INFO,
    )
    return {
        "passphrase": PASSPHRASE,
        "private_key_pem": own.to_pem(PASSPHRASE).decode("ascii"),
        "private_key": own._key.seed.hex(),
        "public_key_pem": own.public_key.to_pem().decode("ascii"),
        "fingerprint": own.public_key.fingerprint,
        "key_bundle": bundle.decode("ascii"),
        "bundle_associated_data": canonical_json(KeyBundle.from_bytes(bundle).header).decode(),
        "hpke_key": context._key.hex(),
        "hpke_nonce": context._base_nonce.hex(),
        "user_key": alice.secret_bytes().hex(),
    }


def hosted_case(vectors: dict[str, Any]) -> dict[str, Any]:
    """Three encrypted responses to the user of `codebook.json`, and what they decode to."""
    codebook = Codebook.from_bytes(vectors["codebook"].encode("ascii"))
    key = codebook.response_key(UserKey.from_secret_bytes(bytes.fromhex(vectors["user_key"])))
    take = counter_stream("encryip hosted vector")
    numbers = struct.unpack(f">{3 * codebook.num_labels}I", take(12 * codebook.num_labels))
    values = np.array(numbers, np.float64).reshape(3, -1)
    values = (values / values.sum(1, keepdims=True)).astype("<f4")
    responses = []
    for row in values:
        cipher = ChaCha20_Poly1305.new(key=key, nonce=take(24))
        cipher.update(codebook.codebook_id)
        sealed, tag = cipher.encrypt_and_digest(row.tobytes())
        responses.append(struct.unpack(f"<{len(row) + 10}i", cipher.nonce + sealed + tag))
    decoded = values.astype(np.float64) @ np.eye(codebook.num_classes)[vectors["table"]]
    return {
        "seed": "encryip hosted vector",
        "response_key": key.hex(),
        "associated_data": codebook.codebook_id.hex(),
        "values": values.tolist(),
        "responses": responses,
        "probabilities": decoded.round(9).tolist(),
        "labels": decoded.argmax(1).tolist(),
    }


def write(name: str, value: dict[str, Any]) -> None:
    fields = (f" {json.dumps(key)}: {json.dumps(field)}" for key, field in value.items())
    (FOLDER / name).write_text("{\n" + ",\n".join(fields) + "\n}\n", encoding="ascii")


def _header(header: Header) -> dict[str, str]:
    return {"bytes": header.to_bytes().hex(), "digest": header.digest.hex()}


def _keys(secret: SharedSecret) -> dict[str, str]:
    return {purpose: secret.derive(purpose).hex() for purpose in PURPOSES}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codebook", action="store_true", help="also draw a new codebook.json")
    parser.add_argument(
        "--public-key", action="store_true", help="also draw a new public_key_bundle.json"
    )
    arguments = parser.parse_args()
    cases = [kem_case(1, 3, 0), kem_case(2, 3, 1), kem_case(4, 6, 4)]
    write("kem.json", {f"t={case['threshold']}": case for case in cases})
    if arguments.codebook:
        write("codebook.json", codebook_case())
    if arguments.public_key:
        write("public_key_bundle.json", public_key_case())
    write("hosted.json", hosted_case(json.loads((FOLDER / "codebook.json").read_text("ascii"))))
