"""Writes hostile.json: `python tests/vectors/make_hostile.py`.

Each case changes one place of a file of `codebook.json` or `public_key_bundle.json`: at `at`,
counted in characters, `remove` of them make way for `insert`. It names the error that opening then
gives; readers in other languages must give the same one.
"""

import json
from base64 import b64decode, b64encode, encodebytes
from functools import cache
from pathlib import Path
from typing import Any

from Crypto.IO._PBES import PBES2

from keras_encryip.client.decoder import Decoder
from keras_encryip.crypto.aead import passphrase_bytes
from keras_encryip.errors import EncryipError
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.formats.key_pair import X25519PrivateKey
from keras_encryip.formats.responses import parse_response
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
    changes += [change for target, text in texts for change in respelled(target, text)]
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
    """Of the bundle of version 2."""
    target, bundle = "public_key_bundle", own["key_bundle"]
    file = json.loads(bundle.split("\n")[1])
    header, body = file["bundle"]["header"], file["bundle"]["body"]
    sealed = f'"sealed":"{body["sealed"]}"'
    whole = bundle[bundle.index('{"encapsulated"') : bundle.index(',"header"')]
    version_1 = f'{{"salt":"{"A" * 22}==","scrypt_log2_n":14,"sealed":"{"A" * 122}=="}}'
    changes = [
        ('"version":2', '"version":1'),
        ('"version":2', '"version":3'),
        ('"version":2', '"version":2.0'),
        ('"version":2', '"version":"2"'),
        (',"version":2', ""),
        (whole, version_1),
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
        ('"alice"', '"bob"'),
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


def private_key_changes(own: dict[str, Any], passphrase: str) -> list[tuple[str, str, str]]:
    """Of the encrypted private key: its armour, its DER, and what is encrypted."""
    text = own["private_key_pem"]
    der = b64decode("".join(text.split("\n")[1:-2]))
    iv, data = der.index(b"\x04\x10") + 2, len(der) - 64
    texts = [
        "",
        text + text,
        "Dear owner,\n" + text,
        text + "Best regards\n",
        text[: text.index("-----END")],
        text.split("\n", 1)[1],
        text.replace("-----\n", "-----\nProc-Type: 4,ENCRYPTED\n\n", 1),
        text.replace("ENCRYPTED PRIVATE", "PRIVATE"),
        text.replace("ENCRYPTED PRIVATE", "RSA PRIVATE"),
        text.replace("BEGIN ENCRYPTED", "BEGIN  ENCRYPTED"),
        text.replace("END ENCRYPTED", "END RSA"),
        text.replace("M", "_", 1),
        text.replace("M", "\0M", 1),
        text.replace("M", "Ä", 1),
        text.replace("M", "", 1),
        text.replace("\n-----END", "=\n-----END"),
        text.replace("\n-----END", "====\n-----END"),
        "\ufeff" + text,
    ]
    ders = [
        b"",
        der[:-1],
        der[1:],
        der + b"\0",
        b"\x31" + der[1:],
        b"\x30\x82\x00" + der[2:],  # a length in two bytes that needs one
        b"\x30\x80" + der[3:] + b"\0\0",  # an indefinite length
        der[:2] + bytes([der[2] - 1]) + der[3:],
        der[:2] + bytes([der[2] + 1]) + der[3:],
        b"\x30\x84\xff\xff\xff\xff" + der[3:],
        der.replace(b"\x02\x02\x40\x00", b"\x02\x02\x40\x01"),  # N is no power of 2
        der.replace(b"\x02\x02\x40\x00", b"\x02\x02\x00\x01"),
        der.replace(b"\x02\x02\x40\x00", b"\x02\x02\x00\x00"),
        der.replace(b"\x02\x02\x40\x00", b"\x02\x02\xc0\x00"),  # N is negative
        der.replace(b"\x02\x02\x40\x00", b"\x02\x02\x20\x00"),
        der.replace(b"\x02\x01\x08", b"\x02\x01\x00"),
        der.replace(b"\x02\x01\x05", b"\x02\x01\x00"),
        der.replace(b"\x02\x01\x05", b"\x02\x01\xfb"),
        der.replace(b"\x02\x01\x05", b"\x04\x01\x05"),
        der[: iv - 2] + b"\x05" + der[iv - 1 :],
        der[:iv] + bytes([der[iv] ^ 1]) + der[iv + 1 :],  # a SET is inside
        der[: iv + 10] + bytes([der[iv + 10] ^ 1]) + der[iv + 11 :],  # X448's name is inside
        der[:data] + bytes([der[data] ^ 1]) + der[data + 1 :],
        der[: data + 16] + bytes([der[data + 16] ^ 1]) + der[data + 17 :],  # another key is inside
        der[:-17] + bytes([der[-17] ^ 16]) + der[-16:],
        der[:-1] + bytes([der[-1] ^ 1]),
    ]
    x25519, key = bytes.fromhex("300506032b656e"), bytes.fromhex("04220420") + bytes(range(32))
    for inside in [  # of PKCS #8, encrypted well
        b"",
        b"\0" * 48,
        tlv(0x30, b"\x02\x01\x00", x25519, key),  # somebody else's
        tlv(0x30, b"\x02\x01\x00", b"\x30\x07" + x25519[2:] + b"\x05\x00", key),
        tlv(0x30, b"\x02\x01\x00", x25519, key, b"\xa0\x00"),
        tlv(0x30, b"\x02\x01\x01", x25519, key, b"\xa0\x00", b"\x81\x21\x00" + bytes(32)),
        tlv(0x30, b"\x02\x01\x00", x25519, key, b"\xa0\x00", b"\x81\x21\x00" + bytes(32)),
        tlv(0x30, b"\x02\x01\x00", x25519, key) + b"\0",
        tlv(0x30, b"\x02\x01\x02", x25519, key),
        tlv(0x30, b"\x02\x01\xff", x25519, key),
        tlv(0x30, b"\x04\x01\x00", x25519, key),
        tlv(0x30, x25519, key),
        tlv(0x30, b"\x02\x01\x00", x25519[2:], key),
        tlv(0x30, b"\x02\x01\x00", b"\x30\x00", key),
        tlv(0x30, b"\x02\x01\x00", x25519, b"\x03" + key[1:]),
        tlv(0x30, b"\x02\x01\x00", x25519, tlv(0x04, bytes(range(32)))),
        tlv(0x30, b"\x02\x01\x00", x25519, tlv(0x04, b"\x04\x1f" + bytes(range(31)))),
        tlv(0x30, b"\x02\x01\x00", x25519, tlv(0x04, b"\x04\x21" + bytes(range(33)))),
        tlv(0x30, b"\x02\x01\x00", x25519, tlv(0x04, b"\x03\x20" + bytes(range(32)))),
        tlv(0x30, b"\x02\x01\x00", bytes.fromhex("300506032b6570"), key),  # Ed25519
    ]:
        cheap = {"iteration_count": 1 << 10}
        secret = passphrase_bytes(passphrase)
        ders.append(PBES2.encrypt(inside, secret, "scryptAndAES256-CBC", cheap, bytes))
    texts += [
        f"-----BEGIN ENCRYPTED PRIVATE KEY-----\n{encodebytes(new).decode()}"
        "-----END ENCRYPTED PRIVATE KEY-----\n"
        for new in ders
    ]
    return [("private_key", text, new) for new in texts]


def tlv(tag: int, *parts: bytes) -> bytes:
    """One element of DER."""
    body = b"".join(parts)
    assert len(body) < 128
    return bytes([tag, len(body)]) + body


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
