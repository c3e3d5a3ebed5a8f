"""Codebook bytes that somebody changed: always refused, always with an error of this package."""

import json
import random
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from keras_encryip.crypto.polynomial import ORDER
from keras_encryip.crypto.signing import SigningKey
from keras_encryip.crypto.slots import ReaderKey
from keras_encryip.errors import EncryipError, FormatError, SignatureError
from keras_encryip.labels import codebook as codebook_module
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook
from tests.labels.conftest import SLOTS, Owner

OWNER = Owner.new()
SIGNING_KEY = OWNER.signing_key
ALICE = OWNER.issue()
ISSUER = SIGNING_KEY.public_bytes()
DATA = OWNER.codebook(LabelAssignment.draw(2, 4, 8, SLOTS)).to_bytes()  # 16 labels, t = 1

many = settings(max_examples=1200, deadline=None, suppress_health_check=list(HealthCheck))


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def resign(file: dict[str, Any], key: SigningKey = SIGNING_KEY) -> bytes:
    """Sign a changed body, so that only the rule under test can refuse it."""
    signature = key.sign("codebook v2", canonical(file["body"]))
    return canonical({"body": file["body"], "signature": b64encode(signature).decode()})


def refuse(data: bytes, message: str = "(?i)codebook|header|field") -> None:
    with pytest.raises(EncryipError, match=message):
        Codebook.from_bytes(data).verify(ISSUER)


def use(data: bytes, key: ReaderKey = ALICE) -> None:
    """All that a reader does with a codebook, without trusting its signer."""
    codebook = Codebook.from_bytes(data)
    _, table, _ = codebook.open(key)
    assert table.min() >= 0
    assert table.max() < codebook.num_classes


def test_the_unchanged_codebook_is_accepted() -> None:
    Codebook.from_bytes(DATA).verify(ISSUER)
    Codebook.from_bytes(resign(json.loads(DATA))).verify(ISSUER)
    use(DATA)


# --- bytes -------------------------------------------------------------------


def test_a_flipped_bit_in_any_byte_is_refused() -> None:
    draw = random.Random(3)
    for position in range(len(DATA)):
        changed = bytearray(DATA)
        changed[position] ^= 1 << draw.randrange(8)
        refuse(bytes(changed))


def test_every_truncation_is_refused() -> None:
    for length in range(len(DATA)):
        with pytest.raises(FormatError, match=r"The codebook is malformed"):
            Codebook.from_bytes(DATA[:length])


def edit(data: bytes, operation: str, at: int, other: int, fill: bytes) -> bytes:
    """One change of a byte string between two positions."""
    low, high = sorted((at % (len(data) + 1), other % (len(data) + 1)))
    return {
        "overwrite": data[:low] + fill + data[low + len(fill) :],
        "insert": data[:low] + fill + data[low:],
        "delete": data[:low] + data[high:],
        "repeat": data[:high] + data[low:high] + data[high:],
        "move": data[:low] + data[high:] + data[low:high],
        "reverse": data[:low] + data[low:high][::-1] + data[high:],
    }[operation]


edits = st.tuples(
    st.sampled_from(["overwrite", "insert", "delete", "repeat", "move", "reverse"]),
    st.integers(0, len(DATA)),
    st.integers(0, len(DATA)),
    st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from([b'"', b"}", b",", b"=", b"A"])),
)


@many
@given(st.lists(edits, min_size=1, max_size=3))
def test_edited_bytes_are_refused(changes: list[tuple[str, int, int, bytes]]) -> None:
    data = DATA
    for operation, at, other, fill in changes:
        data = edit(data, operation, at, other, fill)
    assume(data != DATA)
    refuse(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    refuse(data, "(?i)the codebook is|codebook has version 1")


# --- JSON --------------------------------------------------------------------


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of a JSON document stands."""
    found = [prefix] if prefix else []
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found += paths(value[key], (*prefix, key))
    return found


ATOMS: list[Any] = [None, True, False, -1, 0, 1, 2, 3, 1.5, 2**22, 2**31, 2**63, 2**64, 10**40]
ATOMS += ["", "A", "AAAA", "AA==", "*", "x" * 300, "ä", "\ud800", "\0", [], [[]], {}, {"x": 1}]
ATOMS += [b64encode(bytes(n)).decode() for n in (16, 32, 33, 64, 99)]
PATHS = paths(json.loads(DATA))


def at_path(file: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        file = file[key]
    return file


def change_json(path: tuple[Any, ...], action: str, atom: Any, source: tuple[Any, ...]) -> bytes:
    file = json.loads(DATA)
    parent, key = at_path(file, path[:-1]), path[-1]
    if action == "replace":
        parent[key] = atom
    elif action == "delete":
        del parent[key]
    elif action == "copy from elsewhere":
        parent[key] = json.loads(canonical(at_path(file, source)))
    elif action == "rename" and isinstance(parent, dict):
        parent[f"{key}_"] = parent.pop(key)
    elif action == "add" and isinstance(parent, dict):
        parent["extra"] = atom
    elif action == "repeat" and isinstance(parent, list):
        parent.append(parent[key])
    return canonical(file)


json_changes = st.tuples(
    st.sampled_from(PATHS),
    st.sampled_from(["replace", "delete", "copy from elsewhere", "rename", "add", "repeat"]),
    st.sampled_from(ATOMS),
    st.sampled_from(PATHS),
)


@many
@given(json_changes)
def test_changed_json_is_refused(change: tuple[Any, str, Any, Any]) -> None:
    data = change_json(*change)
    assume(data != DATA)
    refuse(data)


@many
@given(json_changes, json_changes)
def test_what_an_authority_signs_raises_only_package_errors(
    first: tuple[Any, str, Any, Any], second: tuple[Any, str, Any, Any]
) -> None:
    """Behind a good signature too: a reader never crashes, and tables stay legal."""
    for change in (first, second):
        try:
            use(change_json(*change))
        except EncryipError as error:
            assert str(error)  # noqa: PT017  either outcome is fine, nothing else is


def duplicate(name: bytes) -> bytes:
    """The first field of this name twice, as JSON allows."""
    start = DATA.index(b'"' + name + b'":')
    _, length = json.JSONDecoder().raw_decode(DATA[start + len(name) + 3 :].decode())
    end = start + len(name) + 3 + length
    return DATA[:end] + b"," + DATA[start:end] + DATA[end:]


@pytest.mark.parametrize(
    "name",
    ["authority", "codebook_id", "header", "issuer", "num_classes", "slots", "values", "version"],
)
def test_duplicated_fields_are_refused(name: str) -> None:
    data = duplicate(name.encode())
    assert json.loads(data) == json.loads(DATA)
    with pytest.raises(FormatError, match="not in canonical form"):
        Codebook.from_bytes(data)


@pytest.mark.parametrize(
    "spelling",
    [
        pytest.param(lambda f: json.dumps(f, sort_keys=True), id="spaces"),
        pytest.param(lambda f: json.dumps(f, sort_keys=True, indent=0), id="lines"),
        pytest.param(lambda f: canonical(f).decode() + "\n", id="final newline"),
        pytest.param(
            lambda f: json.dumps({k: f[k] for k in reversed(f)}, separators=(",", ":")),
            id="order",
        ),
        pytest.param(
            lambda f: canonical(f).decode().replace('"encryip', '"\\u0065ncryip'), id="escape"
        ),
        pytest.param(
            lambda f: canonical(f).decode().replace('"version":2', '"version":2.0'), id="2.0"
        ),
        pytest.param(
            lambda f: canonical(f).decode().replace("codebook_id", "\\u0063odebook_id"),
            id="escaped name",
        ),
    ],
)
def test_other_spellings_are_refused(spelling: Callable[[Any], str]) -> None:
    data = spelling(json.loads(DATA)).encode()
    assert data != DATA
    assert json.loads(data) == json.loads(DATA)
    with pytest.raises(FormatError, match=r"not in canonical form|malformed: Expected `int`"):
        Codebook.from_bytes(data)


# --- each rule, behind a good signature ----------------------------------------


def coded(change: Callable[[bytearray], None]) -> Callable[[str], str]:
    def changed(text: str) -> str:
        data = bytearray(b64decode(text))
        change(data)
        return b64encode(data).decode()

    return changed


def put(start: int, data: bytes) -> Callable[[bytearray], None]:
    def change(original: bytearray) -> None:
        original[start : start + len(data)] = data

    return change


def cut(length: int) -> Callable[[bytearray], None]:
    def change(original: bytearray) -> None:
        del original[length:]

    return change


def of_version_1(values: str) -> str:
    return b64encode(b64decode(values)[::2]).decode()


def number(value: int) -> Callable[[Any], Any]:
    return lambda _: value


HEADER = ("header",)


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        pytest.param(
            ("version",),
            number(1),
            r"has version 1, which release 0\.3 of keras_encryip reads; this release reads 2\. Exp",
            id="version 1",
        ),
        pytest.param(("version",), number(3), "malformed: Invalid enum value 3", id="version 3"),
        pytest.param(("version",), number(0), "malformed: Invalid enum value 0", id="version 0"),
        pytest.param(("format",), lambda f: f + "2", "malformed: Invalid enum value", id="format"),
        pytest.param(("num_classes",), number(1), "`int` >= 2.*num_classes", id="K = 1"),
        pytest.param(("num_classes",), number((1 << 20) + 1), "`int` <= 1048576", id="K too large"),
        pytest.param(("values",), lambda v: v[:-4], "values has .* bytes", id="values short"),
        pytest.param(("values",), of_version_1, "has 64 bytes, expected 128", id="one value each"),
        pytest.param(("values",), lambda v: "", "has 0 bytes, expected 128", id="no values"),
        pytest.param(("values",), coded(put(0, b"\0\0\0\2")), "not below num_classes", id="e = K"),
        pytest.param(("values",), coded(put(124, b"\xff" * 4)), "not below", id="e = 2^32 - 1"),
        pytest.param(("slots",), coded(cut(31)), r"2 … 4194304 labels, 2 bytes each", id="odd"),
        pytest.param(("slots",), coded(cut(30)), "values has 128 bytes, expected 120", id="15"),
        pytest.param(("slots",), coded(cut(2)), r"must have 2 … 4194304 labels", id="one label"),
        pytest.param(("slots",), lambda _: "", r"must have 2 … 4194304 labels", id="no labels"),
        pytest.param(("slots",), lambda s: s[:-2] + "\n=", "slots is not canonical", id="slots"),
        pytest.param(HEADER, coded(put(0, b"\2")), "wrong length or threshold", id="threshold"),
        pytest.param(HEADER, coded(put(0, b"\0")), "wrong length or threshold", id="t = 0"),
        pytest.param(HEADER, coded(put(1, bytes(32))), "node is not a scalar", id="node 0"),
        pytest.param(
            HEADER, coded(put(1, ORDER.to_bytes(32, "big"))), "node is not a scalar", id="node q"
        ),
        pytest.param(HEADER, coded(put(33, bytes(33))), "not a compressed point", id="R infinity"),
        pytest.param(HEADER, coded(put(66, b"\2" + b"\xff" * 32)), "not a compressed", id="x >= p"),
        pytest.param(
            HEADER,
            coded(put(66, b"\2" + (1).to_bytes(32, "big"))),
            "not a compressed point",
            id="a point off the curve",
        ),
        pytest.param(HEADER, lambda h: h + "AAAA", "wrong length", id="header too long"),
        pytest.param(
            HEADER, lambda h: h[:-1] + "\n", "codebook header is not canonical", id="base64"
        ),
        pytest.param(("codebook_id",), lambda t: t[4:], "codebook_id has 13 bytes", id="id short"),
        pytest.param(("authority",), lambda t: "AAAA" + t, "authority has 35", id="digest long"),
        pytest.param(("issuer",), lambda t: t[4:], "issuer has 29 bytes", id="issuer short"),
        pytest.param(("issuer",), lambda t: t[:-1], "issuer is not canonical", id="no padding"),
    ],
)
def test_rules_hold_behind_a_good_signature(
    path: tuple[Any, ...], change: Callable[[Any], Any], message: str
) -> None:
    file = json.loads(DATA)
    parent = at_path(file["body"], path[:-1])
    parent[path[-1]] = change(parent[path[-1]])
    data = resign(file)
    assert json.loads(data) != json.loads(DATA)
    with pytest.raises(FormatError, match=message):
        Codebook.from_bytes(data)


@pytest.mark.parametrize("field", [bytes(2), b"\x10\0", b"\xff\xff"])
def test_any_slots_are_read_behind_a_good_signature(field: bytes) -> None:
    """The field is masked, so it has no range; the classes stay legal."""
    file = json.loads(DATA)
    file["body"]["slots"] = b64encode(16 * field).decode()
    use(resign(file))


def test_nodes_must_increase_behind_a_good_signature() -> None:
    codebook = Owner.new(threshold=2).codebook(LabelAssignment.draw(2, 4, 8, SLOTS))
    file = json.loads(codebook.to_bytes())
    raw = codebook.header.to_bytes()
    for nodes in (raw[33:65] + raw[1:33], raw[1:33] * 2):
        file["body"]["header"] = b64encode(raw[:1] + nodes + raw[65:]).decode()
        with pytest.raises(FormatError, match="nodes are not strictly increasing"):
            Codebook.from_bytes(resign(file))


@pytest.mark.parametrize("name", ["header", "slots", "num_classes", "issuer", "values", "format"])
def test_missing_fields_are_refused(name: str) -> None:
    file = json.loads(DATA)
    del file["body"][name]
    with pytest.raises(FormatError, match=f"missing required field `{name}`"):
        Codebook.from_bytes(resign(file))


@pytest.mark.parametrize("name", ["access", "blocks", "zzz"])
def test_unknown_fields_are_refused(name: str) -> None:
    file = json.loads(DATA)
    file["body"][name] = 1
    with pytest.raises(FormatError, match=f"unknown field `{name}`"):
        Codebook.from_bytes(resign(file))


def test_oversized_files_are_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook_module, "MAX_CODEBOOK_BYTES", len(DATA))
    Codebook.from_bytes(DATA)
    with pytest.raises(FormatError, match=f"too large: {len(DATA) + 1} bytes, at most"):
        Codebook.from_bytes(DATA + b" ")


def test_a_codebook_signed_by_somebody_else_is_refused() -> None:
    file, attacker = json.loads(DATA), SigningKey.generate()
    refuse(resign(file, attacker), "signature of the codebook is wrong")
    file["body"]["issuer"] = b64encode(attacker.public_bytes()).decode()
    refuse(resign(file, attacker), "codebook was made by another authority")


def test_a_signature_of_another_purpose_is_refused() -> None:
    file = json.loads(DATA)
    signature = SIGNING_KEY.sign("key bundle v3", canonical(file["body"]))
    file["signature"] = b64encode(signature).decode()
    with pytest.raises(SignatureError, match="signature of the codebook is wrong"):
        Codebook.from_bytes(canonical(file)).verify(ISSUER)
