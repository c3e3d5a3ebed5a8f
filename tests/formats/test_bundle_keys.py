"""A user's keys: which roles they have, and their bytes."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_encryip.crypto.slots import SlotKeys
from keras_encryip.errors import ArgumentError, FormatError, KeyRefusedError
from keras_encryip.formats.bundle_keys import BundleKeys

ROLES = [("read",), ("run",), ("read", "run")]
each_way = pytest.mark.parametrize("roles", ROLES, ids="+".join)


@each_way
def test_they_hand_out_what_their_roles_are_for(world: Any, roles: tuple[str, ...]) -> None:
    authority = world.authority
    keys = authority.issue(*roles, z=world.alice.z)
    assert keys.roles == roles
    assert keys.key_id == world.alice.key_id
    if "read" in roles:
        assert keys.reader.key_id == keys.key_id
        assert keys.reader.point.secret_bytes() == authority.read.user_key(keys.z).secret_bytes()
        expected = authority.slots.of_user(keys.key_id).secret_bytes()
        assert keys.reader.slots.secret_bytes() == expected
    if "run" in roles:
        assert keys.runner.secret_bytes() == authority.run.user_key(keys.z).secret_bytes()


def test_they_refuse_what_their_roles_are_not_for(world: Any) -> None:
    host, reader = world.authority.issue("run"), world.authority.issue("read")
    message = rf"Key {host.key_id} runs models, and does not read their answers: ask the model's"
    with pytest.raises(KeyRefusedError, match=message):
        _ = host.reader
    message = rf"Key {reader.key_id} reads models' answers, and does not run models: ask .* 'run'"
    with pytest.raises(KeyRefusedError, match=message):
        _ = reader.runner


@each_way
def test_their_bytes(world: Any, roles: tuple[str, ...]) -> None:
    keys = world.authority.issue(*roles)
    points = {"read": world.authority.read, "run": world.authority.run}
    expected = keys.z.to_bytes(32, "big")
    expected += b"".join(points[r].user_key(keys.z).secret_bytes()[32:] for r in roles)
    if "read" in roles:
        slots = keys.reader.slots
        word = int("".join(map(str, slots.bits)), 2).to_bytes(32, "big")
        expected += word + slots.keys.tobytes()
    assert keys.secret_bytes() == expected
    again = BundleKeys.from_secret_bytes(expected, roles)
    assert (again.roles, again.secret_bytes()) == (roles, expected)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(ROLES),
    st.integers(32, 512).map(lambda eights: 8 * eights),
    st.integers(0, 2**32 - 1),
)
def test_every_number_of_slots_comes_back(roles: tuple[str, ...], slots: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    data = b"".join(b"\1" + random.bytes(31) for _ in range(1 + len(roles)))
    data += random.bytes(slots // 8 * 129) if "read" in roles else b""
    keys = BundleKeys.from_secret_bytes(data, roles)
    assert keys.secret_bytes() == data
    if "read" in roles:
        assert keys.reader.slots.bits.shape == (slots,)
        assert keys.reader.slots.keys.shape == (slots, 16)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ROLES), st.integers(0, 5000))
def test_other_lengths_are_refused(roles: tuple[str, ...], length: int) -> None:
    rest = length - 32 - 32 * len(roles)
    if rest == 0 if "read" not in roles else rest in range(129 * 32, 129 * 513, 129):
        return
    with pytest.raises(FormatError, match=f"Keys for .* never have {length} bytes"):
        BundleKeys.from_secret_bytes(b"\1" * length, roles)


@pytest.mark.parametrize(
    "roles", [(), ("run", "read"), ("run", "run"), ("write",), ("read", "run", "write")], ids=repr
)
def test_other_roles_are_refused(roles: tuple[str, ...]) -> None:
    with pytest.raises(FormatError, match="roles must be a sorted list of distinct 'read' and"):
        BundleKeys.from_secret_bytes(b"\1" * 64, roles)


def test_keys_that_do_not_belong_together_are_refused(world: Any) -> None:
    alice, bob = world.authority.issue(), world.authority.issue()
    slots: SlotKeys = alice.reader.slots
    with pytest.raises(ArgumentError, match="at least one of the roles"):
        BundleKeys(alice.z)
    with pytest.raises(ArgumentError, match="must all lie at `z`"):
        BundleKeys(alice.z, run=bob.runner)
    with pytest.raises(ArgumentError, match="must all lie at `z`"):
        BundleKeys(alice.z, read=alice.reader.point, run=bob.runner, slots=slots)
    with pytest.raises(ArgumentError, match="Slot keys come with the role 'read'"):
        BundleKeys(alice.z, read=alice.reader.point)
    with pytest.raises(ArgumentError, match="Slot keys come with the role 'read'"):
        BundleKeys(alice.z, run=alice.runner, slots=slots)


@each_way
def test_repr_shows_the_key_id_and_roles_only(world: Any, roles: tuple[str, ...]) -> None:
    keys = world.authority.issue(*roles)
    assert repr(keys) == f"<BundleKeys {keys.key_id} roles={','.join(roles)}>"


@pytest.mark.parametrize(
    "copier", [pickle.dumps, copy.copy, copy.deepcopy], ids=lambda c: c.__name__
)
def test_pickling_and_copying_are_refused(world: Any, copier: Callable[[object], object]) -> None:
    for secret in (world.alice, world.alice.reader):
        with pytest.raises(TypeError, match="holds a secret and cannot be pickled or copied"):
            copier(secret)
