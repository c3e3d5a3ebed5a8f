"""What the owner commits to of a codebook's trace labels, and what opens it."""

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from keras_encryip.crypto.slots import commitment
from keras_encryip.labels.live_labels import live_commitment, live_labels


def test_an_opened_label_reads_as_users_read_it(world: Any) -> None:
    """With its key and a slot key of a user, and of no other label."""
    secret = world.owner.master.decapsulate(world.codebook.header)
    opened = live_labels(secret, world.assignment)
    assert [live.label for live in opened] == world.assignment.trace.tolist()
    assert [live.slot for live in opened] == world.assignment.slots[world.assignment.trace].tolist()
    assert [live.classes for live in opened] == list(map(tuple, world.assignment.pairs.tolist()))
    for user in (world.alice, world.bob):
        table = world.codebook.decode_table(user)
        for live in opened:
            bit, key = int(user.slots.bits[live.slot]), user.slots.keys[live.slot].tobytes()
            read = world.codebook.read_label(live.label, bit, live.key, key)
            assert read == live.classes[bit] == table[live.label]


def test_leaf_by_hand(world: Any) -> None:
    secret = world.owner.master.decapsulate(world.codebook.header)
    first = live_labels(secret, world.assignment)[0]
    live = replace(first, label=258, slot=4095, classes=(1, 3))
    numbers = b"\0\0\1\2" + b"\x0f\xff" + live.key + b"\0\0\0\1" + b"\0\0\0\3"
    assert live.leaf == hashlib.sha256(b"encryip live label v1\0" + numbers).digest()


def test_every_change_of_an_opening_is_found(world: Any) -> None:
    secret = world.owner.master.decapsulate(world.codebook.header)
    first, *others = live_labels(secret, world.assignment)
    whole = live_commitment([first, *others])
    assert whole == commitment(live.leaf for live in (first, *others))
    changes: list[dict[str, Any]] = [{"label": first.label ^ 1}, {"classes": first.classes[::-1]}]
    changes += [{"slot": first.slot ^ 1}, {"slot": first.slot ^ 256}]
    changes += [{"classes": (first.classes[0], 5)}, {"classes": (5, first.classes[1])}]
    changes += [
        {"key": first.key[:i] + bytes([first.key[i] ^ 1]) + first.key[i + 1 :]} for i in range(16)
    ]
    for change in changes:
        assert live_commitment([replace(first, **change), *others]) != whole
    assert live_commitment(others) != whole
    assert live_commitment([*others, first]) != whole


def test_another_codebook_of_the_model_has_other_keys(world: Any) -> None:
    again = world.owner.codebook(world.assignment, world.metadata)
    ours, theirs = (
        {live.key for live in live_labels(world.owner.master.decapsulate(header), world.assignment)}
        for header in (world.codebook.header, again.header)
    )
    assert len(ours) == len(theirs) == 64
    assert not ours & theirs


def test_repr_shows_no_key(world: Any) -> None:
    secret = world.owner.master.decapsulate(world.codebook.header)
    live = live_labels(secret, world.assignment)[0]
    assert live.key.hex() not in repr(live)
    assert str(np.frombuffer(live.key, np.uint8).tolist()) not in repr(live)
