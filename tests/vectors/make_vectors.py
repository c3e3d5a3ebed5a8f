"""Writes the test vectors: `python -m tests.vectors.make_vectors [--codebook] [--public-key]`.

`kem.json` and `slots.json` come from a deterministic source of bytes and are the same each
time; so does `hosted.json`, encrypted responses to the user of `codebook.json`. `codebook.json`
holds a codebook and two key bundles made with the system's generator, and
`public_key_bundle.json` a host's bundle made to a public key. They are only written again when
asked for; readers must go on accepting those that are committed.
"""

import argparse
import json
import os
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
from keras_encryip.crypto.slots import SlotSecrets, commitment
from keras_encryip.formats.bundle_body import INFO
from keras_encryip.formats.bundle_keys import BundleKeys
from keras_encryip.formats.key_bundle import KeyBundle, make_bundle
from keras_encryip.formats.key_pair import X25519PrivateKey
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.ciphertext import label_keys, label_masks
from keras_encryip.labels.codebook import Codebook, ModelMetadata

FOLDER = Path(__file__).parent
SLOTS = 256
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


class Owner:
    """Just enough of an authority, from the system's generator."""

    def __init__(self) -> None:
        self.read, self.run = MasterKey.generate(2), MasterKey.generate(2)
        self.slots = SlotSecrets(os.urandom(32), SLOTS)
        self.signing_key = SigningKey.generate()

    def issue(self, *roles: str) -> BundleKeys:
        point = self.read.issue()
        reads = "read" in roles
        return BundleKeys(
            point.z,
            read=point if reads else None,
            run=self.run.user_key(point.z) if "run" in roles else None,
            slots=self.slots.of_user(point.key_id) if reads else None,
        )

    def bundle(self, keys: BundleKeys, subject: str, **opened: Any) -> bytes:
        return make_bundle(
            keys,
            subject=subject,
            issuer_name="ACME",
            authority=self.read.public_key().digest,
            signing_key=self.signing_key,
            not_before=datetime(2024, 1, 1, tzinfo=UTC),
            not_after=datetime(9999, 12, 31, tzinfo=UTC),
            scope=["pets"],
            **opened,
        )


def kem_case(threshold: int, users: int, revoked: int) -> dict[str, Any]:
    """One authority, its users, a header that shuts the first ones out."""
    name = f"encryip kem vector t={threshold}"
    master = MasterKey.generate(threshold, random_bytes=counter_stream(f"{name} master"))
    keys = [master.issue(random_bytes=counter_stream(f"{name} user {i}")) for i in range(users)]
    out = [key.z for key in keys[:revoked]]
    header, secret = master.encapsulate(out, random_bytes=counter_stream(f"{name} header"))
    return {
        "threshold": threshold,
        "seeds": f"{name} + ' master', ' user i', ' header'",
        "master_key": master.secret_bytes().hex(),
        "public_key": master.public_key().to_bytes().hex(),
        "authority": master.public_key().digest.hex(),
        "users": [{"key_id": key.key_id, "user_key": key.secret_bytes().hex()} for key in keys],
        "revoked_users": list(range(revoked)),
        "header": _header(header),
        "keys": _keys(secret),
    }


def slots_case() -> dict[str, Any]:
    """An authority's slots from a seed, what two users hold of them, and the commitments."""
    take = counter_stream("encryip slots vector")
    slots = SlotSecrets(take(32), 256)
    shown = [0, 1, 100, 255]
    users = []
    for key_id in (take(8).hex(), take(8).hex()):
        held = slots.of_user(key_id).secret_bytes()
        users.append(
            {
                "key_id": key_id,
                "codeword": held[:32].hex(),
                "slot_keys": held[32:].hex(),
                "commitment": commitment(slots.codeword_leaves(key_id)),
                "openings": [
                    {"slot": o.slot, "bit": o.bit, "blind": o.blind.hex(), "leaf": o.leaf.hex()}
                    for o in slots.codeword_openings(key_id, shown)
                ],
            }
        )
    return {
        "seed": counter_stream("encryip slots vector")(32).hex(),
        "slots": slots.count,
        "thresholds": slots.thresholds.tolist(),
        "slot_keys": slots.keys.tobytes().hex(),
        "commitment": commitment(slots.slot_leaves()),
        "openings": [
            {
                "slot": o.slot,
                "threshold": o.threshold,
                "blind": o.blind.hex(),
                "digests": [o.digest_0.hex(), o.digest_1.hex()],
                "leaf": o.leaf.hex(),
            }
            for o in slots.slot_openings(shown)
        ],
        "users": users,
    }


def codebook_case() -> dict[str, Any]:
    """A small model's codebook, two bundles that open it, and every value on the way."""
    owner = Owner()
    alice, bob = owner.issue("read", "run"), owner.issue("read")
    revoked, foreign = owner.issue("read"), Owner().issue("read")
    metadata = ModelMetadata(model="pets", class_names=["cat", "dog", "Käfer"], notes="vector")
    codebook = Codebook.make(
        LabelAssignment.draw(3, 8, 8, SLOTS),
        metadata,
        owner.read,
        owner.slots,
        owner.signing_key,
        revoked=[revoked.z],
    )
    bundle = owner.bundle(alice, "alice", passphrase=PASSPHRASE, scrypt_log2_n=14)
    key, n = alice.reader, np.arange(codebook.num_labels)
    secret = key.point.decapsulate(codebook.header)
    (keys, slot_masks), held = label_keys(secret, n), key.slots.secret_bytes()
    slots = codebook.masked_slots ^ slot_masks
    table = codebook.decode_table(key)
    labels = [0, 1, 8, 17, codebook.num_labels - 1]
    return {
        "passphrase": PASSPHRASE,
        "key_bundle": bundle.decode("ascii"),
        "codebook": codebook.to_bytes().decode("ascii"),
        "public_key": owner.read.public_key().to_bytes().hex(),
        "bundle_associated_data": _header_text(bundle),
        "bundle_keys": alice.secret_bytes().hex(),
        "user_key": key.point.secret_bytes().hex(),
        "run_key": alice.runner.secret_bytes().hex(),
        "codeword": held[: SLOTS // 8].hex(),
        "slot_keys": held[SLOTS // 8 :].hex(),
        "metadata_key": secret.derive("model metadata v2").hex(),
        "metadata": canonical_json(metadata).decode("ascii"),
        "labels_key": secret.derive("label keys v2").hex(),
        "label_keys": [row.tobytes().hex() for row in keys],
        "slot_masks": slot_masks.tolist(),
        "slots": slots.tolist(),
        "masks": label_masks(key.slots.keys[slots], keys, 3).tolist(),
        "table": table.tolist(),
        "ciphertexts": [codebook.ciphertext(label).hex() for label in labels],
        "classes": [int(table[label]) for label in labels],
        "reader_bundle": owner.bundle(bob, "bob", passphrase=PASSPHRASE, scrypt_log2_n=14).decode(
            "ascii"
        ),
        "reader_bundle_keys": bob.secret_bytes().hex(),
        "reader_table": codebook.decode_table(bob.reader).tolist(),
        "revoked_user_key": revoked.reader.point.secret_bytes().hex(),
        "foreign_user_key": foreign.reader.point.secret_bytes().hex(),
    }


def public_key_case() -> dict[str, Any]:
    """A key pair, a host's bundle made to it, and every value on the way."""
    owner, own = Owner(), X25519PrivateKey.generate()
    host = owner.issue("run")
    bundle = owner.bundle(host, "host", public_key=own.public_key)
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
        "bundle_associated_data": _header_text(bundle),
        "hpke_key": context._key.hex(),
        "hpke_nonce": context._base_nonce.hex(),
        "bundle_keys": host.secret_bytes().hex(),
        "run_key": host.runner.secret_bytes().hex(),
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


def _header_text(bundle: bytes) -> str:
    return canonical_json(KeyBundle.from_bytes(bundle).header).decode("ascii")


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
    write("slots.json", slots_case())
    if arguments.codebook:
        write("codebook.json", codebook_case())
    if arguments.public_key:
        write("public_key_bundle.json", public_key_case())
    write("hosted.json", hosted_case(json.loads((FOLDER / "codebook.json").read_text("ascii"))))
