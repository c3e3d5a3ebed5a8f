"""One accepted spelling of everything that comes from outside."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_encryip.crypto.encoding import (
    canonical_json,
    decode_base64,
    decode_point,
    decode_scalar,
    encode_base64,
    encode_point,
    encode_scalar,
    format_time,
    parse_canonical_json,
    parse_time,
)
from keras_encryip.crypto.kem import MasterKey
from keras_encryip.crypto.polynomial import ORDER
from keras_encryip.errors import EncryipError, FormatError

P = 2**256 - 2**224 + 2**192 + 2**96 - 1
B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
GENERATOR = bytes.fromhex("036b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296")


class Pet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    legs: Annotated[int, msgspec.Meta(ge=0, le=8)]


def parse(data: bytes) -> Pet:
    return parse_canonical_json(data, Pet, what="pet", max_bytes=60)


def on_curve(x: int) -> bool:
    y_squared = (x**3 - 3 * x + B) % P
    return y_squared == 0 or pow(y_squared, (P - 1) // 2, P) == 1


def test_canonical_json_is_sorted_dense_and_ascii() -> None:
    assert canonical_json({"b": [1, True, None], "a": "Käfer"}) == (
        b'{"a":"K\\u00e4fer","b":[1,true,null]}'
    )
    assert canonical_json(Pet("Rex", 4)) == b'{"legs":4,"name":"Rex"}'


def test_floats_that_json_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": float("nan")})


def test_parse_reads_the_one_spelling() -> None:
    assert parse(b'{"legs":4,"name":"Rex"}') == Pet("Rex", 4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "malformed: Input data was truncated", id="empty"),
        pytest.param(b'{"legs":4,"name":"Rex"', "malformed: .*truncated", id="truncated"),
        pytest.param(b'{"legs":4}', "malformed: .*missing required field `name`", id="missing"),
        pytest.param(b'{"legs":4,"name":"R","x":1}', "unknown field `x`", id="unknown field"),
        pytest.param(b'{"legs":9,"name":"Rex"}', r"Expected `int` <= 8 .*legs", id="range"),
        pytest.param(b'{"legs":4.0,"name":"Rex"}', "malformed|canonical", id="float"),
        pytest.param(b'{"legs":"4","name":"Rex"}', "Expected `int`, got `str`", id="type"),
        pytest.param(b'{"legs":' + b"9" * 30 + b',"name":""}', "malformed", id="huge integer"),
        pytest.param(b'{"name":"Rex","legs":4}', "not in canonical form", id="order"),
        pytest.param(b'{"legs":4, "name":"Rex"}', "not in canonical form", id="space"),
        pytest.param(b'{"legs":4,"name":"Rex"}\n', "not in canonical form", id="newline"),
        pytest.param(b'{"legs":4,"legs":4,"name":"R"}', "not in canonical form", id="twice"),
        pytest.param(b'{"legs":4,"name":"\\u0052"}', "not in canonical form", id="escape"),
        pytest.param('{"legs":4,"name":"Kä"}'.encode(), "not in canonical form", id="utf-8"),
        pytest.param(b'{"legs":4,"name":"K\xff"}', "malformed: .*utf-8", id="not utf-8"),
        pytest.param(b'{"legs":-0,"name":"Rex"}', "not in canonical form", id="minus zero"),
        pytest.param(b'\xef\xbb\xbf{"legs":4,"name":""}', "malformed", id="byte order mark"),
        pytest.param(b'{"legs":4,"name":"Rex"}{}', "malformed", id="trailing"),
        pytest.param(b"[" * 60, "malformed", id="nesting"),
        pytest.param(b"[" * 61, "The pet is too large: 61 bytes, at most 60", id="too large"),
    ],
)
def test_other_spellings_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        parse(data)
    assert caught.value.__context__ is None


def test_nesting_beyond_the_recursion_limit_is_refused() -> None:
    class Anything(msgspec.Struct):
        x: object

    with pytest.raises(FormatError, match="malformed: maximum recursion depth"):
        parse_canonical_json(b'{"x":' + b"[" * 100_000, Anything, what="thing", max_bytes=200_000)


@given(st.binary(max_size=60))
def test_arbitrary_bytes_never_raise_anything_else(data: bytes) -> None:
    with pytest.raises(EncryipError, match=r"The pet is (malformed|not in canonical form)"):
        parse(data)


@given(st.binary(max_size=40))
def test_base64_round_trip(data: bytes) -> None:
    assert decode_base64(encode_base64(data), what="x", length=len(data)) == data


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("YQ", id="no padding"),
        pytest.param("YQ=", id="half the padding"),
        pytest.param("YR==", id="unused bits"),
        pytest.param("YWJ=", id="unused bits, one pad"),
        pytest.param("YQ==\n", id="newline"),
        pytest.param(" YQ==", id="space"),
        pytest.param("YQ==YQ==", id="inner padding"),
        pytest.param("-_8=", id="url alphabet"),
        pytest.param("YQ===", id="too much padding"),
        pytest.param("Y\u00e4==", id="not ascii"),
        pytest.param("=", id="padding only"),
    ],
)
def test_other_base64_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="Field salt is not canonical base64"):
        decode_base64(text, what="salt")


def test_base64_of_another_length_is_refused() -> None:
    with pytest.raises(FormatError, match="Field salt has 1 bytes, expected 2"):
        decode_base64("YQ==", what="salt", length=2)


@given(st.integers(1, ORDER - 1))
def test_scalar_round_trip(value: int) -> None:
    data = encode_scalar(value)
    assert len(data) == 32
    assert decode_scalar(data, what="x") == value


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(bytes(32), id="0"),
        pytest.param(ORDER.to_bytes(32, "big"), id="q"),
        pytest.param((ORDER + 1).to_bytes(32, "big"), id="q + 1"),
        pytest.param(b"\xff" * 32, id="2^256 - 1"),
        pytest.param(b"\x01", id="short"),
        pytest.param(bytes(32) + b"\x01", id="long"),
        pytest.param(b"", id="empty"),
    ],
)
def test_other_scalars_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"node is not a scalar in 1 … q−1 of 32 bytes"):
        decode_scalar(data, what="node")


def test_generator_round_trip() -> None:
    assert encode_point(decode_point(GENERATOR, what="G")) == GENERATOR


def test_both_parities_are_told_apart() -> None:
    odd = decode_point(GENERATOR, what="G")
    even = decode_point(b"\x02" + GENERATOR[1:], what="-G")
    assert int(odd.x) == int(even.x)
    assert int(odd.y) + int(even.y) == P
    assert (odd + even).is_point_at_infinity()


SMALL_X = next(x for x in range(1, 100) if on_curve(x))
OFF_CURVE_X = next(x for x in range(1, 100) if not on_curve(x))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00", id="infinity, SEC 1"),
        pytest.param(bytes(33), id="infinity, 33 zeros"),
        pytest.param(b"\x02" + OFF_CURVE_X.to_bytes(32, "big"), id="not on the curve"),
        pytest.param(b"\x02" + (P + SMALL_X).to_bytes(32, "big"), id="x + p of a point"),
        pytest.param(b"\x02" + P.to_bytes(32, "big"), id="x = p"),
        pytest.param(b"\x02" + b"\xff" * 32, id="x = 2^256 - 1"),
        pytest.param(b"\x04" + GENERATOR[1:], id="tag 4"),
        pytest.param(b"\x00" + GENERATOR[1:], id="tag 0"),
        pytest.param(b"\x05" + GENERATOR[1:], id="tag 5"),
        pytest.param(GENERATOR[:-1], id="short"),
        pytest.param(GENERATOR + b"\0", id="long"),
        pytest.param(b"\x04" + GENERATOR[1:] * 2, id="uncompressed length"),
    ],
)
def test_other_points_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="R is not a compressed point on P-256"):
        decode_point(data, what="R")


def test_small_x_is_a_point_below_p() -> None:
    """The case `x + p of a point` above is refused for its size alone."""
    data = b"\x02" + SMALL_X.to_bytes(32, "big")
    assert encode_point(decode_point(data, what="R")) == data


def test_infinity_has_no_encoding() -> None:
    point = decode_point(GENERATOR, what="G")
    with pytest.raises(FormatError, match="point at infinity has no encoding"):
        encode_point(point.point_at_infinity())


def test_points_of_a_public_key_are_the_multiples_of_the_generator() -> None:
    # 2·G, from the NIST point multiplication vectors for P-256.
    two = "037cf27b188d034f7e8a52380304b51ac3c08969e277f21b35a60b48fc47669978"
    public = MasterKey([1, 2]).public_key()
    assert public.to_bytes() == GENERATOR + bytes.fromhex(two)


# --- times -------------------------------------------------------------------------------


def test_times_are_utc_to_the_second() -> None:
    eastern = timezone(timedelta(hours=-5))
    text = format_time(datetime(2024, 2, 29, 20, 0, 59, 999999, eastern))
    assert text == "2024-03-01T01:00:59Z"
    assert parse_time(text, what="issued_at") == datetime(2024, 3, 1, 1, 0, 59, tzinfo=UTC)


@pytest.mark.parametrize("text", ["2024-02-30T00:00:00Z", "2024-02-28 00:00:00Z", "yesterday"])
def test_other_texts_are_no_times(text: str) -> None:
    with pytest.raises(FormatError, match=r"^Field issued_at is not a date") as caught:
        parse_time(text, what="issued_at")
    assert caught.value.__context__ is None
