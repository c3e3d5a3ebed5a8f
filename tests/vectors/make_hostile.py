"""Writes hostile.json: `python tests/vectors/make_hostile.py`.

Each case changes one place of a file of `codebook.json`: at `at`, counted in characters, `remove`
of them make way for `insert`. It names the error that opening then gives; readers in other
languages must give the same one.
"""

import json
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

from keras_encryip.client.bundle import KeyBundle
from keras_encryip.client.decoder import Decoder
from keras_encryip.client.responses import parse_response
from keras_encryip.errors import EncryipError
from keras_encryip.labels.codebook import Codebook

FOLDER = Path(__file__).parent
RESPONSE = '{"predictions":[[0.5,0.25,0.25],[0.125,0.125,0.75]]}'


def hostile_changes(vectors: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(file, old, new): the first `old` in the file becomes `new`."""
    bundle, codebook = vectors["key_bundle"], vectors["codebook"]
    changes = [
        ("key_bundle", "-----BEGIN", "----BEGIN"),
        ("key_bundle", "BEGIN ENCRYIP", "BEGIN  ENCRYIP"),
        ("key_bundle", "KEY BUNDLE-----\n", "KEY BUNDLE-----\r\n"),
        ("key_bundle", "-----END ENCRYIP KEY BUNDLE-----\n", "-----END ENCRYIP KEY BUNDLE-----"),
        (
            "key_bundle",
            "-----END ENCRYIP KEY BUNDLE-----\n",
            "-----END ENCRYIP KEY BUNDLE-----\n\n",
        ),
        ("key_bundle", bundle, ""),
        ("key_bundle", bundle[35:-34], ""),
        ("key_bundle", bundle[35:-34], "[]"),
        ("key_bundle", bundle[35:-34], "[" * 2_000),
        ("key_bundle", bundle[35:-34], '{"bundle":' * 500),
        ("key_bundle", '{"bundle"', ' {"bundle"'),
        ("key_bundle", '{"bundle"', '\ufeff{"bundle"'),
        ("key_bundle", '{"bundle":{', '{"bundle": {'),
        ("key_bundle", '{"bundle":{', '{"bundle":{"body":{},'),
        ("key_bundle", '{"bundle":{', '{"bundle":{"__proto__":{},'),
        ("key_bundle", '{"bundle":{', '{"bundle":{"constructor":1,'),
        ("key_bundle", '"version":1', '"version":2'),
        ("key_bundle", '"version":1', '"version":0'),
        ("key_bundle", '"version":1', '"version":1.0'),
        ("key_bundle", '"version":1', '"version":"1"'),
        ("key_bundle", '"version":1', '"version":true'),
        ("key_bundle", '"version":1', '"version":1,"x":1'),
        ("key_bundle", '"version":1', '"version":1,"version":1'),
        ("key_bundle", ',"version":1', ""),
        ("key_bundle", '"version":1', '"version":1,"__proto__":null'),
        ("key_bundle", "encryip-key-bundle", "encryip-key-bundlf"),
        ("key_bundle", '"ACME"', '""'),
        ("key_bundle", '"ACME"', f'"{"A" * 256}"'),
        ("key_bundle", '"ACME"', f'"{"A" * 257}"'),
        ("key_bundle", '"ACME"', '"ACME\\u0000"'),
        ("key_bundle", '"ACME"', '"\\ud800"'),
        ("key_bundle", '"ACME"', '"\\u0041CME"'),
        ("key_bundle", '"ACME"', '"\\u00C4CME"'),
        ("key_bundle", '"ACME"', '"ÄCME"'),
        ("key_bundle", '"ACME"', '"AC\\/ME"'),
        ("key_bundle", '"ACME"', "null"),
        ("key_bundle", '"ACME"', "[]"),
        ("key_bundle", '["pets"]', "[]"),
        ("key_bundle", '["pets"]', '"pets"'),
        ("key_bundle", '["pets"]', '["pets",1]'),
        ("key_bundle", '["pets"]', '[""]'),
        ("key_bundle", '["pets"]', '["cats"]'),
        ("key_bundle", '["pets"]', "[" + ",".join(['"pets"'] * 65) + "]"),
        ("key_bundle", '"alice"', '"alicf"'),
        ("key_bundle", "ab8df84f1f061be0", "ab8df84f1f061be1"),
        ("key_bundle", "ab8df84f1f061be0", "AB8df84f1f061be0"),
        ("key_bundle", "ab8df84f1f061be0", "ab8df84f1f061be"),
        ("key_bundle", "ab8df84f1f061be0", "ab8df84f1f061be0\\n"),
        ("key_bundle", "9999-12-31T00:00:00Z", "9999-12-32T00:00:00Z"),
        ("key_bundle", "9999-12-31T00:00:00Z", "9999-02-29T00:00:00Z"),
        ("key_bundle", "9999-12-31T00:00:00Z", "9999-12-31T24:00:00Z"),
        ("key_bundle", "9999-12-31T00:00:00Z", "9999-12-31T00:00:60Z"),
        ("key_bundle", "9999-12-31T00:00:00Z", "9999-12-31 00:00:00Z"),
        ("key_bundle", "9999-12-31T00:00:00Z", "9999-12-31T00:00:00z"),
        ("key_bundle", "9999-12-31T00:00:00Z", "9999-12-31T00:00:00Z\\n"),
        ("key_bundle", "2024-01-01T00:00:00Z", "0000-01-01T00:00:00Z"),
        ("key_bundle", "2024-01-01T00:00:00Z", "2024-01-01T00:00:01Z"),
        ("key_bundle", '"scrypt_log2_n":14', '"scrypt_log2_n":13'),
        ("key_bundle", '"scrypt_log2_n":14', '"scrypt_log2_n":21'),
        ("key_bundle", '"scrypt_log2_n":14', '"scrypt_log2_n":15'),
        ("key_bundle", '"scrypt_log2_n":14', '"scrypt_log2_n":1e1'),
        ("key_bundle", '"scrypt_log2_n":14', '"scrypt_log2_n":-14'),
        ("key_bundle", '"scrypt_log2_n":14', '"scrypt_log2_n":014'),
        ("key_bundle", '"scrypt_log2_n":14', f'"scrypt_log2_n":{10**30}'),
        ("key_bundle", '"scrypt_log2_n":14', '"scrypt_log2_n":NaN'),
        ("codebook", codebook, ""),
        ("codebook", codebook, "{}"),
        ("codebook", '{"body"', '\n{"body"'),
        ("codebook", codebook[-1], codebook[-1] + "\n"),
        ("codebook", '"version":1', '"version":2'),
        ("codebook", '"version":1', '"version":1,"zz":null'),
        ("codebook", "encryip-codebook", "encryip-codebooks"),
        ("codebook", '"num_classes":3', '"num_classes":1'),
        ("codebook", '"num_classes":3', '"num_classes":2'),
        ("codebook", '"num_classes":3', '"num_classes":4'),
        ("codebook", '"num_classes":3', f'"num_classes":{(1 << 20) + 1}'),
        ("codebook", '"num_classes":3', '"num_classes":3.0'),
        ("codebook", '"size":8', '"size":0'),
        ("codebook", '"size":8', '"size":7'),
        ("codebook", '"size":8', '"size":9'),
        ("codebook", '"size":8', f'"size":{1 << 22}'),
        ("codebook", '"size":8', f'"size":{(1 << 22) + 1}'),
    ]
    file = json.loads(codebook)
    body, header = file["body"], json.loads(vectors["bundle_associated_data"])
    sealed = json.loads(bundle.split("\n")[1])["bundle"]["body"]
    texts = [("codebook", body[n]) for n in ("authority", "codebook_id", "issuer", "values")]
    texts += [("codebook", body["access"]["sealed"]), ("codebook", file["signature"])]
    texts += [("codebook", body["access"]["header"]), ("codebook", body["blocks"][0]["header"])]
    texts += [("key_bundle", header["authority"]), ("key_bundle", header["issuer"])]
    texts += [("key_bundle", sealed["salt"]), ("key_bundle", sealed["sealed"])]
    for target, text in texts:
        data = b64decode(text)
        spellings = [text + "\\n", " " + text, text.rstrip("=") + "====", text[:-4], "!" + text[1:]]
        spellings += [text[:-2] + "Ä=", text.replace("=", "")] if "=" in text else []
        if text.endswith("="):  # an unused bit that is not zero
            last = text.rstrip("=")[-1]
            alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
            spelled = text.rstrip("=")[:-1] + alphabet[alphabet.index(last) + 1]
            spellings.append(spelled + "=" * text.count("="))
        flipped = [bytes([data[0] ^ 1]) + data[1:], data[:-1] + bytes([data[-1] ^ 1])]
        lengths = [data + b"\0", data[:-1], b""]
        spellings += [b64encode(new).decode() for new in flipped + lengths]
        changes += [(target, text, new) for new in spellings if new != text]
    block = b64decode(body["blocks"][0]["header"])
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    prime = (1 << 256) - (1 << 224) + (1 << 192) + (1 << 96) - 1
    for start, stop, new in [
        (0, 1, b"\0"),
        (0, 1, b"\1"),
        (0, 1, b"\x03"),
        (0, 1, b"\x41"),
        (1, 33, bytes(32)),
        (1, 33, block[33:65]),
        (33, 65, order.to_bytes(32, "big")),
        (33, 65, (1).to_bytes(32, "big")),
        (65, 66, b"\0"),
        (65, 66, b"\4"),
        (65, 98, bytes(33)),
        (66, 98, prime.to_bytes(32, "big")),
        (66, 98, b"\xff" * 32),
        (66, 98, (1).to_bytes(32, "big")),  # not on the curve
        (66, 98, (5).to_bytes(32, "big")),  # on the curve: another point
    ]:
        changed = block[:start] + new + block[stop:]
        old = body["blocks"][0]["header"]
        changes.append(("codebook", old, b64encode(changed).decode()))
        begin = vectors["ciphertexts"][0].index(block.hex())
        text = vectors["ciphertexts"][0]
        changes.append(
            ("ciphertext", text, text[:begin] + changed.hex() + text[begin + 2 * len(block) :])
        )
    text = vectors["ciphertexts"][0]
    for new in [
        "",
        text[:-2],
        text + "00",
        "02" + text[2:],
        "00" + text[2:],
        text[:98] + "00000001" + text[106:],
        text[:98] + "00100001" + text[106:],
        text[:-8] + "00000003",
        text[:-8] + "ffffffff",
        text[:-16] + "00400000" + text[-8:],
        text[:4] + "ff" + text[6:],  # another codebook's
        text[:-8] + "00000002" if text[-1] != "2" else text[:-8] + "00000000",
        text[:-16] + "0000000100000002",
        text[:40],
        text * 60,
    ]:
        changes.append(("ciphertext", text, new))
    for new in [
        "",
        "[]",
        "null",
        "1",
        '"x"',
        "{",
        "{}",
        '{"predictions":[]}',
        '{"predictions":{}}',
        '{"predictions":null}',
        '{"predictions":"x"}',
        '{"error":"Servable not found"}',
        '{"error":{}}',
        '{"predictions":[[0.5],[0.5,0.5]]}',
        '{"predictions":[["x"]]}',
        '{"predictions":[{"other":[1]}]}',
        '{"predictions":[{"confused":[0.5],"encrypted":[1]}]}',
        '{"predictions":[{"confused":[0.5]},{"other":[0.5]}]}',
        '{"predictions":[{"confused":[0.5]},[0.5]]}',
        '{"predictions":[{"b64":"AA=="},{"b64":1}]}',
        '{"predictions":[{"b64":"AA=="},[1]]}',
        '{"predictions":[{"b64":"AB=="}]}',
        '{"predictions":[{"b64":"AA"}]}',
        '{"outputs":{"other":[[1]]}}',
        '{"outputs":{"confused":[[1.0]],"ciphertext_bytes":[{"b64":"AA=="}]}}',
        "[" * 2_000,
    ]:
        changes.append(("response", RESPONSE, new))
    return changes


def files(vectors: dict[str, Any]) -> dict[str, str]:
    """The good files that the cases change; the ciphertext is spelled in hexadecimal."""
    return {
        "key_bundle": vectors["key_bundle"],
        "codebook": vectors["codebook"],
        "ciphertext": vectors["ciphertexts"][0],
        "response": RESPONSE,
    }


def open_all(passphrase: str, found: dict[str, str]) -> None:
    """What an application does: open the model, read a response and a ciphertext."""
    bundle = KeyBundle.from_bytes(found["key_bundle"].encode())
    codebook = Codebook.from_bytes(found["codebook"].encode())
    decoder = Decoder.open(codebook, bundle, passphrase)
    decoder.decrypt([bytes.fromhex(found["ciphertext"])])
    parse_response(found["response"])


def shared(a: str, b: str) -> int:
    """The number of characters that both begin with."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def edit(old: str, new: str) -> dict[str, Any]:
    """The one place where they differ."""
    start = shared(old, new)
    end = shared(old[start:][::-1], new[start:][::-1])
    return {"at": start, "remove": len(old) - start - end, "insert": new[start : len(new) - end]}


def main() -> None:
    vectors = json.loads((FOLDER / "codebook.json").read_text("ascii"))
    good = files(vectors)
    open_all(vectors["passphrase"], good)
    cases = []
    for target, old, new in hostile_changes(vectors):
        assert old in good[target], (target, old)
        changed = good[target].replace(old, new, 1)
        error = ""
        try:
            open_all(vectors["passphrase"], {**good, target: changed})
        except EncryipError as raised:
            error = type(raised).__name__
        assert error, (target, old, new)
        cases.append({"file": target, **edit(good[target], changed), "error": error})
    lines = ",\n".join(f"  {json.dumps(case)}" for case in cases)
    text = f'{{\n "response": {json.dumps(RESPONSE)},\n "cases": [\n{lines}\n ]\n}}\n'
    (FOLDER / "hostile.json").write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
