"""Writes hostile.json: `python -m tests.vectors.make_hostile`.

Each case changes one place of a file of `codebook.json` or `public_key_bundle.json`: at `at`,
counted in characters, `remove` of them make way for `insert`. It names the error that opening then
gives; readers in other languages must give the same one.
"""

import json
from base64 import b64decode, b64encode
from functools import cache
from pathlib import Path
from typing import Any

from keras_encryip.client.decoder import Decoder
from keras_encryip.errors import EncryipError
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PrivateKey
from keras_encryip.formats.responses import parse_response
from keras_encryip.labels.codebook import Codebook
from tests.vectors.hostile_private_keys import private_key_changes

FOLDER = Path(__file__).parent
VERSIONS = ["0", "1", "2", "4", "3.0", '"3"', "true"]
ROLES = [
    "[]",
    '["read"]',
    '["run"]',
    '["run","read"]',
    '["read","read"]',
    '["read","run","run"]',
    '["read","run","write"]',
    '["Read","run"]',
    '["read","run",1]',
    '"read"',
    "null",
]
RESPONSE = '{"predictions":[[0.5,0.25,0.25],[0.125,0.125,0.75]]}'
RESPONSES = [
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
]


def hostile_changes(vectors: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(file, old, new): the first `old` in the file becomes `new`."""
    bundle, codebook = vectors["key_bundle"], vectors["codebook"]
    key_id = json.loads(vectors["bundle_associated_data"])["key_id"]
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
        *(("key_bundle", '"version":3', f'"version":{new}') for new in VERSIONS),
        ("key_bundle", '"version":3', '"version":3,"x":1'),
        ("key_bundle", '"version":3', '"version":3,"version":3'),
        ("key_bundle", ',"version":3', ""),
        ("key_bundle", '"version":3', '"version":3,"__proto__":null'),
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
        ("key_bundle", key_id, key_id[:-1] + ("1" if key_id[-1] == "0" else "0")),
        ("key_bundle", key_id, key_id.upper()),
        ("key_bundle", key_id, key_id[:-1]),
        ("key_bundle", key_id, key_id + "\\n"),
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
        *(("key_bundle", '["read","run"]', new) for new in ROLES),
        ("key_bundle", ',"roles":["read","run"]', ""),
        ("key_bundle", '"opens_with":"passphrase"', '"opens_with":"private key"'),
        ("key_bundle", '"opens_with":"passphrase"', '"opens_with":"Passphrase"'),
        ("key_bundle", '"opens_with":"passphrase"', '"opens_with":1'),
        ("key_bundle", '"opens_with":"passphrase",', ""),
        ("codebook", codebook, ""),
        ("codebook", codebook, "{}"),
        ("codebook", '{"body"', '\n{"body"'),
        ("codebook", codebook[-1], codebook[-1] + "\n"),
        ("codebook", '"version":2', '"version":1'),
        ("codebook", '"version":2', '"version":3'),
        ("codebook", '"version":2', '"version":2.0'),
        ("codebook", '"version":2', '"version":2,"zz":null'),
        ("codebook", "encryip-codebook", "encryip-codebooks"),
        ("codebook", '"num_classes":3', '"num_classes":1'),
        ("codebook", '"num_classes":3', '"num_classes":2'),
        ("codebook", '"num_classes":3', '"num_classes":4'),
        ("codebook", '"num_classes":3', f'"num_classes":{(1 << 20) + 1}'),
        ("codebook", '"num_classes":3', '"num_classes":3.0'),
    ]
    file = json.loads(codebook)
    body, header = file["body"], json.loads(vectors["bundle_associated_data"])
    sealed = json.loads(bundle.split("\n")[1])["bundle"]["body"]
    fields = ("authority", "codebook_id", "header", "issuer", "metadata", "slots", "values")
    texts = [("codebook", text) for text in (*map(body.get, fields), file["signature"])]
    texts += [("key_bundle", header["authority"]), ("key_bundle", header["issuer"])]
    texts += [("key_bundle", sealed["salt"]), ("key_bundle", sealed["sealed"])]
    changes += [change for target, text in texts for change in respelled(target, text)]
    changes += [("key_bundle", *change) for change in resized(sealed["sealed"])]
    changes += [("codebook", *change) for change in table_changes(body)]
    changes += header_changes(body["header"], vectors["ciphertexts"][0])
    text = vectors["ciphertexts"][0]
    changes += [("ciphertext", text, new) for new in ciphertext_changes(text)]
    changes += [("response", RESPONSE, new) for new in RESPONSES]
    return changes


def resized(sealed: str) -> list[tuple[str, str]]:
    """Lengths that go with other roles, other numbers of slots, or none."""
    data, eight_slots = b64decode(sealed), 1 + 8 * 16
    lengths = [28, 28 + 64, 28 + 96, len(data) - 32, len(data) + 32]
    lengths += [len(data) + 16, len(data) - eight_slots, len(data) + eight_slots]
    return [(sealed, b64encode(data[:n].ljust(n, b"\0")).decode()) for n in lengths]


def table_changes(body: dict[str, Any]) -> list[tuple[str, str]]:
    """Of slots and values: out of range, too many, too few, swapped."""
    slots, values = b64decode(body["slots"]), b64decode(body["values"])
    new_slots = [
        *(number.to_bytes(2, "big") + slots[2:] for number in (4095, 4096, 0xFFFF)),
        *(slots[:-2] + number.to_bytes(2, "big") for number in (4096, 1)),
        slots[2:],
        slots + slots[:2],
        slots[:2],
        slots[2:] + slots[:2],
    ]
    new_values = [
        *(number.to_bytes(4, "big") + values[4:] for number in (3, 1 << 31, (1 << 32) - 1)),
        values[:-4] + (3).to_bytes(4, "big"),
        values[::-1],
        values[: len(values) // 2],
        values[4:],
        values[8:],
        values + values[:8],
        values[8:] + values[:8],
    ]
    changes = [("slots", new) for new in new_slots] + [("values", new) for new in new_values]
    return [(body[field], b64encode(new).decode()) for field, new in changes]


def header_changes(text: str, ciphertext: str) -> list[tuple[str, str, str]]:
    """Of a codebook's header, in `codebook.json` and in a label ciphertext."""
    changes, block = [], b64decode(text)
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
        changes.append(("codebook", text, b64encode(changed).decode()))
        found = ciphertext.replace(block.hex(), changed.hex())
        changes.append(("ciphertext", ciphertext, found))
    return changes


def ciphertext_changes(text: str) -> list[str]:
    """Of a label ciphertext: its length, its fields, another label's."""
    slot, j, e0, e1 = text[-28:-24], text[-24:-16], text[-16:-8], text[-8:]
    start = text[:-28]
    return [
        "",
        text[:-2],
        text + "00",
        "01" + text[2:],
        "03" + text[2:],
        "00" + text[2:],
        text[:98] + "00000001" + text[106:],
        text[:98] + "00100001" + text[106:],
        text[:4] + "ff" + text[6:],  # another codebook's
        start + "1000" + j + e0 + e1,
        start + "ffff" + j + e0 + e1,
        start + "0fff" + j + e0 + e1,
        start + slot + "00400000" + e0 + e1,
        start + slot + "00000001" + e0 + e1,
        start + slot + j + "00000003" + e1,
        start + slot + j + e0 + "00000003",
        start + slot + j + "ffffffff" + e1,
        start + slot + j + e0 + "ffffffff",
        start + slot + j + e0 + ("00000002" if e1[-1] != "2" else "00000000"),
        start + j + e0 + e1,  # as release 0.3 ends
        text[:40],
        text * 60,
    ]


def respelled(target: str, text: str) -> list[tuple[str, str, str]]:
    """Other spellings, other bytes and other lengths of a field in base64."""
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
    return [(target, text, new) for new in spellings if new != text]


def public_key_bundle_changes(own: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Of the bundle that a private key opens."""
    target, bundle = "public_key_bundle", own["key_bundle"]
    file = json.loads(bundle.split("\n")[1])
    header, body = file["bundle"]["header"], file["bundle"]["body"]
    sealed = f'"sealed":"{body["sealed"]}"'
    whole = bundle[bundle.index('{"encapsulated"') : bundle.index(',"header"')]
    other = f'{{"salt":"{"A" * 22}==","scrypt_log2_n":14,"sealed":"{"A" * 122}=="}}'
    changes = [
        ('"opens_with":"private key"', '"opens_with":"passphrase"'),
        *(('"version":3', f'"version":{new}') for new in VERSIONS),
        (',"version":3', ""),
        *(('["run"]', new) for new in ROLES if new != '["run"]'),
        (whole, other),
        (whole, "{}"),
        (whole, "null"),
        (whole, whole[:-1] + ',"zz":1}'),
        (whole, whole[:-1] + ',"salt":""}'),
        (whole, "{" + sealed + "}"),
        (sealed, '"sealed":1'),
        (sealed, sealed + "," + sealed),
        (sealed, '"scrypt_log2_n":14,' + sealed),
        (f'"{body["recipient"]}"', "null"),
        (f'"{body["recipient"]}"', "[]"),
        ('"host"', '"bob"'),
        (header["key_id"], "0" * 16),
        ('["pets"]', '["*"]'),
        ("9999-12-31T00:00:00Z", "9999-12-31T00:00:01Z"),
    ]
    prime = (1 << 255) - 19
    order_8 = (
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    )
    low = [0, 1, prime - 1, *order_8]
    spelled = [prime, prime + 1, *(u + (1 << 255) for u in low)]  # of the same points
    spelled += [prime + 9, 9 + (1 << 255), (1 << 256) - 1]  # of good points
    points = [u.to_bytes(32, "little") for u in (*low, *spelled, 9)]  # the last is a good one
    for field in ("encapsulated", "recipient"):
        changes += [(body[field], b64encode(point).decode()) for point in points]
    texts = [*body.values(), header["authority"], header["issuer"], file["signature"]]
    return [(target, *change) for change in changes] + [
        change for text in texts for change in respelled(target, text)
    ]


def files(vectors: dict[str, Any], own: dict[str, Any]) -> dict[str, str]:
    """The good files that the cases change; the ciphertext is spelled in hexadecimal."""
    return {
        "key_bundle": vectors["key_bundle"],
        "codebook": vectors["codebook"],
        "ciphertext": vectors["ciphertexts"][0],
        "response": RESPONSE,
        "public_key_bundle": own["key_bundle"],
        "private_key": own["private_key_pem"],
    }


def open_all(passphrase: str, found: dict[str, str]) -> None:
    """What applications do: open a bundle each way, a model, a response and a ciphertext."""
    private_key = read_private_key(found["private_key"], passphrase)
    KeyBundle.from_bytes(found["public_key_bundle"].encode()).unlock(private_key=private_key)
    bundle = KeyBundle.from_bytes(found["key_bundle"].encode())
    codebook = Codebook.from_bytes(found["codebook"].encode())
    decoder = Decoder.open(codebook, bundle, passphrase)
    decoder.decrypt([bytes.fromhex(found["ciphertext"])])
    parse_response(found["response"])


@cache
def read_private_key(text: str, passphrase: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_pem(text.encode(), passphrase)


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
    own = json.loads((FOLDER / "public_key_bundle.json").read_text("ascii"))
    assert own["passphrase"] == vectors["passphrase"]
    good = files(vectors, own)
    open_all(vectors["passphrase"], good)
    changes = hostile_changes(vectors) + public_key_bundle_changes(own)
    changes += private_key_changes(own, own["passphrase"])
    cases = []
    for target, old, new in changes:
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
