"""The TypeScript client in node reads what Python reads, and refuses what Python refuses."""

import json
import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_encryip.errors
from keras_encryip.client.decoder import Decoder
from keras_encryip.crypto.kem import MasterKey
from keras_encryip.crypto.signing import SigningKey
from keras_encryip.crypto.slots import SlotSecrets
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PrivateKey
from keras_encryip.formats.responses import parse_response
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook, ModelMetadata
from tests.bundles import Authority, new_authority

pytestmark = pytest.mark.integration

PASSPHRASE = "a passphrase of my own"
CLIENT = Path(__file__).parents[2] / "clients" / "js"
SCRIPT = """
import { readFileSync } from "node:fs";
import { Decoder, KeyBundle, parseResponse, X25519PrivateKey } from CLIENT;
const { codebook, bundle, passphrase, pem, answers } = JSON.parse(readFileSync(0, "utf8"));
try {
  const own = pem === null ? null : await X25519PrivateKey.parse(pem, passphrase ?? undefined);
  const decoder = await Decoder.open(codebook, bundle, own ?? passphrase);
  const { header } = await KeyBundle.parse(bundle);
  const read = answers.map((text) => {
    const answer = parseResponse(text);
    if (answer.kind === "ciphertexts") return { labels: decoder.decrypt(answer.ciphertexts) };
    const probabilities = decoder.probabilities(answer.rows).map((row) => [...row]);
    const [labels, names] = [decoder.labels(answer.rows), decoder.names(answer.rows)];
    return { probabilities, labels, names };
  });
  const table = [...decoder.secretTable()];
  console.log(JSON.stringify({ header, table, classNames: decoder.classNames, read }));
} catch (error) {
  console.log(JSON.stringify({ name: error.name, message: error.message }));
}
"""


def node(
    codebook: str,
    bundle: str,
    passphrase: str | None,
    answers: list[str],
    pem: str | None = None,
) -> dict[str, Any]:
    """What the client in node says to files and answers; `pem` is the user's private key."""
    script = SCRIPT.replace("CLIENT", json.dumps((CLIENT / "dist" / "index.js").as_uri()))
    finished = subprocess.run(
        ["node", "--input-type=module", "--eval", script],
        input=json.dumps(
            {
                "codebook": codebook,
                "bundle": bundle,
                "passphrase": passphrase,
                "pem": pem,
                "answers": answers,
            }
        ),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    found: dict[str, Any] = json.loads(finished.stdout)
    return found


def test_its_own_tests_pass() -> None:
    finished = subprocess.run(
        ["npm", "test"], cwd=CLIENT, capture_output=True, text=True, timeout=600
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("name", ["digits", "hosted"])
def test_node_decodes_as_python_does(name: str, served: Any, server: Any, digits: Any) -> None:
    images = digits.x_test[:200].tolist()
    requests: list[dict[str, Any]] = [{"instances": images}]
    if name == "digits":
        requests.append({"instances": images, "signature_name": "encrypted_label"})
    answers = [
        json.dumps(server.predict(f"/v1/models/{name}:predict", json.dumps(r).encode()))
        for r in requests
    ]
    codebook = served.codebook(name).read_text("ascii")
    found = node(codebook, served.bundle("alice").read_text("ascii"), served.passphrase, answers)
    decoder = Decoder.open(served.codebook(name), served.bundle("alice"), served.passphrase)
    assert found["table"] == decoder.secret_table().tolist()
    assert found["classNames"] == decoder.class_names == list(served.names)
    confused = parse_response(answers[0])
    read = found["read"][0]
    np.testing.assert_allclose(
        read["probabilities"], decoder.probabilities(confused), rtol=0, atol=1e-6
    )
    assert read["labels"] == decoder.labels(confused).tolist()
    assert read["names"] == decoder.names(confused)
    assert (np.array(read["labels"]) == digits.y_test[:200]).mean() > 0.9
    if name == "digits":
        ciphertexts = parse_response(answers[1])
        assert found["read"][1]["labels"] == decoder.decrypt(ciphertexts).tolist()


@pytest.mark.parametrize(
    ("user", "passphrase", "error"),
    [
        ("bob", None, "RevokedKeyError"),
        ("alice", "correct horse", "PassphraseError"),
        ("alice", "", "ArgumentError"),
    ],
    ids=["revoked", "wrong-passphrase", "no-passphrase"],
)
def test_node_refuses_with_pythons_words(
    user: str, passphrase: str | None, error: str, served: Any
) -> None:
    passphrase = served.passphrase if passphrase is None else passphrase
    codebook = served.codebook("digits").read_text("ascii")
    said = node(codebook, served.bundle(user).read_text("ascii"), passphrase, [])
    with pytest.raises(getattr(keras_encryip.errors, error)) as caught:
        Decoder.open(served.codebook("digits"), served.bundle(user), passphrase)
    assert said == {"name": error, "message": str(caught.value)}


OTHERS = {
    "scrypt": ("-scrypt",),
    "scrypt-wide": ("-scrypt", "-scrypt_N", "1024", "-scrypt_r", "16", "-scrypt_p", "2"),
    "pbkdf2": ("-iter", "600000"),
    "aes-128": ("-v2", "aes-128-cbc"),
    "plain": ("-nocrypt",),
}
REFUSED = {
    "aes-192": ("-v2", "aes-192-cbc"),
    "3des": ("-v2", "des3"),
    "sha-1": ("-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA1"),
    "sha-512": ("-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA512"),
    "pbes1": ("-v1", "PBE-SHA1-3DES"),
    "dear-pbkdf2": ("-iter", "10000001"),
    "wide-scrypt": ("-scrypt", "-scrypt_N", "2", "-scrypt_r", "8", "-scrypt_p", "129"),
}


def convert(pem: bytes, *form: str, passphrase: str = PASSPHRASE) -> bytes:
    """A private key's file that OpenSSL encrypts in another way."""
    passphrases = ["-passin", f"pass:{passphrase}", "-passout", f"pass:{passphrase}"]
    return subprocess.run(
        ["openssl", "pkcs8", "-topk8", *form, *passphrases],
        input=pem,
        capture_output=True,
        timeout=120,
        check=True,
    ).stdout


@pytest.mark.parametrize("name", ["as-written", *OTHERS])
def test_node_opens_bundles_to_a_public_key(name: str) -> None:
    """The key pair and the bundle are Python's; OpenSSL writes the private key in other forms."""
    codebook, bundle, own, table = to_public_key()
    pem = own.to_pem(PASSPHRASE)
    if name in OTHERS:
        pem = convert(pem, *OTHERS[name])
    passphrase = None if name == "plain" else PASSPHRASE
    assert X25519PrivateKey.from_pem(pem, passphrase).public_key == own.public_key
    found = node(codebook, bundle, passphrase, [], pem.decode("ascii"))
    assert found["table"] == table
    assert found["header"]["opens_with"] == "private key"


@pytest.mark.parametrize("name", REFUSED)
def test_node_says_how_to_convert_other_private_keys(name: str) -> None:
    """And the command that it names makes a file that opens."""
    codebook, bundle, own, table = to_public_key()
    pem = convert(own.to_pem(PASSPHRASE), *REFUSED[name])
    said = node(codebook, bundle, PASSPHRASE, [], pem.decode("ascii"))
    assert said["name"] == "FormatError"
    command = r"Convert it: openssl pkcs8 -topk8 (.*) -in OLD.pem -out NEW.pem$"
    (form,) = re.findall(command, said["message"])
    converted = convert(pem, *form.split()).decode("ascii")
    assert node(codebook, bundle, PASSPHRASE, [], converted)["table"] == table


def test_node_refuses_private_keys_with_pythons_words() -> None:
    codebook, bundle, own, _ = to_public_key()
    opened = KeyBundle.from_bytes(bundle.encode("ascii"))
    pem, stranger = own.to_pem(PASSPHRASE), X25519PrivateKey.generate().to_pem(PASSPHRASE)
    for data, passphrase, error in (
        (pem, "wrong horse", "PassphraseError"),
        (pem, None, "PassphraseError"),
        (pem, "", "ArgumentError"),
        (convert(pem, "-nocrypt"), PASSPHRASE, "PassphraseError"),
        (own.public_key.to_pem(), None, "FormatError"),
        (stranger, PASSPHRASE, "KeyRefusedError"),
    ):
        said = node(codebook, bundle, passphrase, [], data.decode("ascii"))
        with pytest.raises(getattr(keras_encryip.errors, error)) as caught:
            opened.unlock(private_key=X25519PrivateKey.from_pem(data, passphrase))
        assert said == {"name": error, "message": str(caught.value)}


def to_public_key() -> tuple[str, str, X25519PrivateKey, list[int]]:
    """A codebook, a bundle to a new key pair, its private key, and the decode table."""
    authority, own = new_authority(), X25519PrivateKey.generate()
    alice = authority.issue()
    codebook = authority.codebook(LabelAssignment.draw(3, 9, 5, 256))
    bundle = authority.bundle(alice, passphrase=None, public_key=own.public_key)
    text = codebook.to_bytes().decode("ascii"), bundle.decode("ascii")
    return *text, own, codebook.decode_table(alice.reader).tolist()


def read(codebook: bytes, bundle: bytes) -> Decoder:
    return Decoder.open(
        Codebook.from_bytes(codebook), KeyBundle.from_bytes(bundle), "correct horse"
    )


def test_node_refuses_with_pythons_words_what_it_cannot_read() -> None:
    """Bundles without the role `read`, files of release 0.3, and a key of another authority."""
    authority = new_authority()
    codebook = authority.codebook(LabelAssignment.draw(3, 9, 5, 256))
    alice, host = authority.bundle(authority.issue()), authority.bundle(authority.issue("run"))
    foreign = new_authority().codebook(LabelAssignment.draw(3, 9, 5, 256))
    for book, bundle, error in (
        (codebook.to_bytes(), host, "KeyRefusedError"),
        (codebook.to_bytes(), alice.replace(b'"version":3', b'"version":1'), "FormatError"),
        (codebook.to_bytes(), alice.replace(b'"version":3', b'"version":2'), "FormatError"),
        (codebook.to_bytes().replace(b'"version":2', b'"version":1'), alice, "FormatError"),
        (foreign.to_bytes(), alice, "ForeignKeyError"),
    ):
        said = node(book.decode("ascii"), bundle.decode("ascii"), "correct horse", [])
        with pytest.raises(getattr(keras_encryip.errors, error)) as caught:
            read(book, bundle)
        assert said == {"name": error, "message": str(caught.value)}


@pytest.mark.parametrize(("threshold", "slots"), [(1, 256), (16, 1000), (64, 4096)])
def test_node_reads_any_text_threshold_and_slots(threshold: int, slots: int) -> None:
    """Strings that canonical JSON must spell alike in both languages, and keys of any size."""
    wild = 'A"\\/\b\f\n\r\t\x00\x1f\x7f\x80é\u2028\uffff\U0001f41e\U0010ffff'
    passphrase = "e\u0301 \U0001f41e \x00"
    masters = MasterKey.generate(threshold), MasterKey.generate(threshold)
    secrets = SlotSecrets(os.urandom(32), slots), SigningKey.generate()
    authority = Authority(*masters, *secrets, "\U0001f41e" * 256)
    alice = authority.issue()
    metadata = ModelMetadata(model=wild, class_names=[wild, "", "x" * 256], notes=wild)
    assignment = LabelAssignment.draw(3, 900, slots // 2, slots)
    codebook = Codebook.make(assignment, metadata, authority.read, *secrets)
    bundle = authority.bundle(
        alice,
        passphrase=passphrase,
        subject=wild,
        not_before=datetime(1970, 1, 1, tzinfo=UTC),
        not_after=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
        scope=[wild, "pets"],
    ).decode("ascii")
    found = node(codebook.to_bytes().decode("ascii"), bundle, passphrase, [])
    assert found["table"] == codebook.decode_table(alice.reader).tolist()
    assert found["classNames"] == list(metadata.class_names)
    header = KeyBundle.from_bytes(bundle.encode("ascii")).header
    assert found["header"] == {name: getattr(header, name) for name in header.__struct_fields__}


def test_the_example_in_the_docs_runs(
    tmp_path: Path, served: Any, server: Any, digits: Any
) -> None:
    """As a package, with the files where the example has them."""
    docs = (CLIENT.parents[1] / "docs" / "guides" / "javascript.md").read_text("utf-8")
    example, _ = re.findall(r"<!-- tested -->\n```js\n(.*?)```", docs, re.DOTALL)
    (tmp_path / "example.mjs").write_text(example, "utf-8")
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "keras-encryip-client").symlink_to(CLIENT)
    shutil.copy(served.codebook("digits"), tmp_path)
    shutil.copy(served.bundle("alice"), tmp_path)
    for signature in ("serving_default", "encrypted_label"):
        body = {"instances": digits.x_test[:50].tolist(), "signature_name": signature}
        answer = server.predict("/v1/models/digits:predict", json.dumps(body).encode())
        (tmp_path / "answer.json").write_text(json.dumps(answer), "ascii")
        for passphrase, said in (
            (served.passphrase, ""),
            ("wrong", "PassphraseError: The passphr"),
        ):
            finished = subprocess.run(
                ["node", "example.mjs"],
                cwd=tmp_path,
                env={**os.environ, "ENCRYIP_BUNDLE_PASSPHRASE": passphrase},
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert finished.returncode == 0, finished.stderr
            assert finished.stderr.startswith(said)
            names = finished.stdout.splitlines()
            if said:
                assert names == []
            else:
                true = [served.names[label] for label in digits.y_test[:50]]
                assert np.mean([a == b for a, b in zip(names, true, strict=True)]) > 0.85


def test_the_example_of_a_private_key_runs(tmp_path: Path, served: Any) -> None:
    docs = (CLIENT.parents[1] / "docs" / "guides" / "javascript.md").read_text("utf-8")
    _, example = re.findall(r"<!-- tested -->\n```js\n(.*?)```", docs, re.DOTALL)
    (tmp_path / "example.mjs").write_text(example, "utf-8")
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "keras-encryip-client").symlink_to(CLIENT)
    for file in (served.codebook("digits"), served.bundle("carol"), served.private_key):
        shutil.copy(file, tmp_path)
    finished = subprocess.run(
        ["node", "example.mjs"],
        cwd=tmp_path,
        env={**os.environ, "ENCRYIP_BUNDLE_PASSPHRASE": served.own_passphrase},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.stdout.splitlines() == list(served.names), finished.stderr
