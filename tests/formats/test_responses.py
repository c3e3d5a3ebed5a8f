"""Model outputs from files and from the wire; encrypted ones that are wrong, changed or cut off."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from Crypto.Cipher import ChaCha20_Poly1305

from keras_encryip.errors import ArgumentError, FormatError, SignatureError
from keras_encryip.formats import responses
from keras_encryip.formats.responses import open_responses, parse_response, read_outputs

KEY, DATA = bytes(range(32)), bytes(range(16))
REFUSED = "A response cannot be opened with this key, belongs to another model version, or was"


def encrypted(values: np.ndarray, key: bytes = KEY, data: bytes = DATA) -> np.ndarray:
    rows = []
    for number, row in enumerate(values.astype("<f4")):
        nonce = number.to_bytes(24, "big")
        cipher = ChaCha20_Poly1305.new(key=key, nonce=nonce)
        cipher.update(data)
        sealed, tag = cipher.encrypt_and_digest(row.tobytes())
        rows.append(np.frombuffer(nonce + sealed + tag, "<i4"))
    return np.stack(rows).astype(np.int32)


VALUES = np.random.default_rng(0).random((3, 5)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32])
def test_words_of_any_integer_type(dtype: Any) -> None:
    words = encrypted(VALUES).view(np.uint32) if dtype == np.uint32 else encrypted(VALUES)
    opened = open_responses(words.astype(dtype), KEY, DATA, 5)
    assert opened.dtype == np.float32
    np.testing.assert_array_equal(opened, VALUES)
    np.testing.assert_array_equal(open_responses(words[0], KEY, DATA, 5), VALUES[0])


@pytest.mark.parametrize("place", range(15))
def test_every_word_counts(place: int) -> None:
    words = encrypted(VALUES)
    words[1, place] ^= 1 << 17
    with pytest.raises(SignatureError, match=REFUSED) as error:
        open_responses(words, KEY, DATA, 5)
    assert error.value.__context__ is None


def test_rows_cannot_be_cut_or_joined() -> None:
    words = encrypted(VALUES)
    for wrong in (words[:, :-1], np.pad(words, [(0, 0), (0, 1)]), words.ravel()):
        with pytest.raises(ArgumentError, match="must be integers with a last axis of 15"):
            open_responses(wrong, KEY, DATA, 5)
    swapped = np.concatenate([words[:1, :6], words[1:2, 6:]], axis=1)
    with pytest.raises(SignatureError, match=REFUSED):
        open_responses(swapped, KEY, DATA, 5)


def test_wrong_key_and_other_version() -> None:
    for key, data in ((bytes(32), DATA), (KEY, bytes(16))):
        with pytest.raises(SignatureError, match=REFUSED):
            open_responses(encrypted(VALUES), key, data, 5)


def test_what_is_no_response() -> None:
    with pytest.raises(ArgumentError, match="must be integers"):
        open_responses(np.zeros((2, 15)), KEY, DATA, 5)
    with pytest.raises(ArgumentError, match="must be integers"):
        open_responses(np.int32(3), KEY, DATA, 5)
    with pytest.raises(ArgumentError, match="must hold 32-bit words"):
        open_responses(np.full((2, 15), 2**32), KEY, DATA, 5)


# --- from the wire ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"predictions": [[0.5, 0.25], [1, 0]]},
        {"outputs": [[0.5, 0.25], [1, 0]]},
        {"outputs": {"confused": [[0.5, 0.25], [1, 0]]}},
        {"predictions": [{"confused": [0.5, 0.25], "other": 3}, {"confused": [1, 0]}]},
    ],
)
def test_every_format_of_an_answer(body: Any) -> None:
    table = parse_response(json.dumps(body))
    assert isinstance(table, np.ndarray)
    assert table.dtype == np.float32
    assert table.tolist() == [[0.5, 0.25], [1, 0]]
    assert parse_response(b'{"predictions": [{"b64": "YQ=="}, {"b64": "YmM="}]}') == [b"a", b"bc"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[" * 100_000, "is not a JSON object"),
        ("[1]", "is not a JSON object"),
        ('{"error": "no gpu"}', "The model server reported an error: no gpu"),
        ('{"predictions": []}', "has no `predictions`"),
        ('{"outputs": {"scores": [1]}}', "must hold the output `confused`, `encrypted` or `cipher"),
        ('{"outputs": {"confused": [1], "encrypted": [1]}}', "must hold the output `confused`"),
        ('{"predictions": [{"b64": "YQ=="}, 3]}', "mixes ciphertexts with something else"),
        ('{"predictions": [[1], [2, 3]]}', "are not a table of numbers"),
    ],
)
def test_other_answers_are_refused(body: str, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        parse_response(body)
    assert caught.value.__context__ is None


def test_an_oversized_answer_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "MAX_RESPONSE_BYTES", 10)
    with pytest.raises(FormatError, match="The response is too large: more than 10 bytes"):
        parse_response(b"{" * 11)


def test_from_the_json_of_a_server() -> None:
    words = encrypted(VALUES)
    for body in (
        f'{{"predictions": {words.tolist()}}}',
        f'{{"outputs": {{"encrypted": {words.tolist()}}}}}',
    ):
        found = parse_response(body)
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(open_responses(found, KEY, DATA, 5), VALUES)
    with pytest.raises(FormatError, match="not a table of numbers"):
        parse_response(f'{{"predictions": [[{"9" * 400}]]}}')
    found = parse_response('{"predictions": [[0, 1, 0]]}')  # probabilities, written short
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32


def test_vector_opens() -> None:
    path = Path(__file__).parents[1] / "vectors" / "hosted.json"
    vector = json.loads(path.read_text(encoding="ascii"))
    key, data = (bytes.fromhex(vector[name]) for name in ("response_key", "associated_data"))
    opened = open_responses(np.array(vector["responses"]), key, data, 32)
    np.testing.assert_array_equal(opened, np.array(vector["values"], np.float32))


# --- from files ------------------------------------------------------------------------------


def test_outputs_of_both_kinds_of_file(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", VALUES)
    np.testing.assert_array_equal(read_outputs(tmp_path / "rows.npy"), VALUES)
    (tmp_path / "one.csv").write_text("0.5,0.25\n")
    assert read_outputs(tmp_path / "one.csv").tolist() == [[0.5, 0.25]]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("none.npy", None, "No such file or directory"),
        ("rows.txt", b"1", r"its name must end in \.npy or \.csv"),
        ("cut.npy", b"\x93NUMPY\x01\x00", "EOF: reading array header length"),
        ("archive.npy", b"PK\x03\x04", "EOF: reading magic string"),
        ("pickle.npy", b"\x80\x04.", "EOF: reading magic string"),
        ("words.csv", b"a,b\n", "could not convert string 'a' to float64"),
    ],
)
def test_files_that_hold_no_outputs(
    tmp_path: Path, name: str, data: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(
        FormatError, match=rf"^Cannot read (the )?model outputs (from )?'.*{name}': .*{message}"
    ) as caught:
        read_outputs(path)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_json_from_any_shell(encoding: str) -> None:
    """PowerShell's `>` writes UTF-16; JSON says by itself what it is."""
    body = '{"predictions": [[0.5, 0.25, 0.25]]}'.encode(encoding)
    assert parse_response(body).tolist() == [[0.5, 0.25, 0.25]]  # type: ignore[union-attr]
