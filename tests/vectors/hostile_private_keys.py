"""Changes of the private key in public_key_bundle.json, for make_hostile.py."""

from base64 import b64decode, encodebytes
from typing import Any

from Crypto.IO._PBES import PBES2

from keras_encryip.crypto.aead import passphrase_bytes


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
