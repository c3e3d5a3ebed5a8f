"""Nobody can make an innocent user guilty, with all that leaves the owner's house.

The attacker has any number of evidence folders, every public file, two bundles with their
passphrases, everybody's sealed bundles from the mail, and the event log. They answer as a service,
publish a table, or pool slot keys, as they like.
"""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_encryip.crypto.encoding import encode_scalar
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.tracing.report import TraceReport
from tests.authority.worlds import MODEL, World, make_world

USERS = ("alice", "bob", "carol", "dave", "erin")
INSIDERS = ("alice", "bob")


@pytest.fixture(scope="module", params=[2, 10])
def world(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Carol was revoked, and everybody has the release from before that, too.

    There is evidence of every kind, t + 1 folders about different users among it.
    """
    folder = tmp_path_factory.mktemp(f"classes-{request.param}")
    world = make_world(folder, USERS, classes=request.param, homophones=16, revoked=["carol"])
    reports = {}  # all from before there is evidence
    for user in ("dave", "erin", *INSIDERS):
        reports[f"evidence service {user}"] = world.trace(world.table(user))
        reports[f"evidence table {user}"] = world.tracer.table(world.table(user), model=MODEL)
        bundle = world.tracer.bundle(world.bundle(user), "correct horse")
        reports[f"evidence bundle {user}"] = bundle
    for name, report in reports.items():
        world.evidence(report, name)
    yield world
    world.authority.close()


class Attacker:
    """All that is known outside, in the attacker's words.

    Attributes:
        tables: insiders' decode tables.
        slot_keys: uint8 `[users, M, 16]`, insiders'.
        live: label → (slot, the classes of bits 0 and 1), as evidence shows it.
        biases: slot → p, as evidence shows it.
        known: (slot, bit) → slot key, from insiders and evidence.
    """

    def __init__(self, world: World) -> None:
        self.tables = [world.table(user) for user in INSIDERS]
        self.slot_keys = np.array([world.keys(user).reader.slots.keys for user in INSIDERS])
        self.live: dict[int, tuple[int, list[int]]] = {}
        self.biases: dict[int, float] = {}
        self.known: dict[tuple[int, int], bytes] = {}
        for path in sorted(world.folder.glob("evidence */statement.json")):
            statement = json.loads(path.read_bytes())["statement"]
            slots = statement["slots"]
            for one, slot in zip(statement["live"], slots, strict=False):
                self.live[one["label"]] = slot["slot"], one["classes"]
            for i, slot in enumerate(slots):
                self.biases[slot["slot"]] = slot["threshold"] / 2**32
                for accused in statement["accused"]:
                    bit = accused["bits"][i]
                    if bit["key"]:
                        self.known[slot["slot"], bit["bit"]] = base64.b64decode(bit["key"])

    def fill(self, rule: Callable[[int, list[int], float], int]) -> np.ndarray:
        """A table that answers live labels by a rule of label, classes and bias."""
        table = self.tables[0].copy()
        for label, (slot, classes) in self.live.items():
            table[label] = rule(label, classes, self.biases[slot])
        return table

    def answers(self, seed: int) -> np.ndarray:
        """One attempt of many: which answers could some third user give?"""
        random = np.random.default_rng(seed)
        one, two = self.tables

        def other_than_ours(label: int, classes: list[int], bias: float) -> int:
            outside = [c for c in classes if c not in (one[label], two[label])]
            return int(random.choice(outside or classes))

        rules: list[Callable[[int, list[int], float], int]] = [
            lambda label, classes, bias: classes[int(random.random() < bias)],
            lambda label, classes, bias: classes[int(bias > 0.5)],
            lambda label, classes, bias: classes[int(bias < 0.5)],
            lambda label, classes, bias: classes[int(random.integers(2))],
            other_than_ours,
            lambda label, classes, bias: int(
                random.choice([c for c in classes if c != one[label]] or classes)
            ),
            lambda label, classes, bias: (
                other_than_ours(label, classes, bias) if random.random() < 0.5 else -1
            ),
        ]
        return self.fill(rules[seed % len(rules)])

    def pooled_keys(self, seed: int) -> np.ndarray:
        """Slot keys, for each slot whichever is known, as a third user might have them."""
        random = np.random.default_rng(seed)
        slots = self.slot_keys.shape[1]
        keys = self.slot_keys[random.integers(2, size=slots), np.arange(slots)].copy()
        for (slot, bit), key in self.known.items():
            if bit == int(random.random() < self.biases[slot]):
                keys[slot] = np.frombuffer(key, np.uint8)
        if seed % 3 == 0:  # only where there is a choice
            fixed = (self.slot_keys[0] == self.slot_keys[1]).all(1)
            keys[fixed] = 0
        return keys


@pytest.fixture(scope="module")
def attacker(world: World) -> Attacker:
    attacker = Attacker(world)
    assert sorted(attacker.live) == sorted(world.assignment.trace.tolist()), "evidence shows all"
    assert len(attacker.biases) > 64
    return attacker


def third_users(report: TraceReport) -> set[str]:
    return {s.subject for s in report.guilty} - set(INSIDERS)


# --- P9 ------------------------------------------------------------------------------


def test_no_third_user_is_guilty_by_any_answers(world: World, attacker: Attacker) -> None:
    for seed in range(105):
        table = attacker.answers(seed)
        assert not third_users(world.tracer.table(table, model=MODEL)), seed
        if seed % 7 == seed // 20:
            assert not third_users(world.trace(table)), seed


@pytest.mark.parametrize("user", ["dave", "erin"])
def test_evidence_is_no_kit_to_accuse_its_user_again(
    world: World, attacker: Attacker, user: str
) -> None:
    """The folder shows how dave reads each trace label, and his slot keys there."""
    table, keys = attacker.tables[0].copy(), np.zeros_like(attacker.slot_keys[0])
    for path in world.folder.glob(f"evidence * {user}/statement.json"):
        statement = json.loads(path.read_bytes())["statement"]
        bits = [bit["bit"] for bit in statement["accused"][0]["bits"]]
        for one, bit in zip(statement["live"], bits, strict=False):
            table[one["label"]] = one["classes"][bit]
        shown = statement["leaked"] or [b["key"] for b in statement["accused"][0]["bits"]]
        for slot, key in zip(statement["slots"], shown, strict=True):
            keys[slot["slot"]] = np.frombuffer(base64.b64decode(key), np.uint8)
    found = world.trace(table), world.tracer.table(table, model=MODEL), world.tracer.key(None, keys)
    for report in found:
        assert report.verdict == "identified"
        assert [s.subject for s in report.identified] == [user]


def test_no_third_user_is_guilty_by_any_slot_keys(world: World, attacker: Attacker) -> None:
    point = world.keys("alice").reader.point
    for seed in range(40):
        keys = attacker.pooled_keys(seed)
        assert not third_users(world.tracer.key(None, keys)), seed
        assert not third_users(world.tracer.key(point, keys)), seed


def test_sealed_bundles_from_the_mail_convict_nobody(world: World) -> None:
    for user in USERS:
        report = world.tracer.bundle(world.bundle(user))
        assert report.verdict == "identified"
        assert [s.subject for s in report.identified] == [user]
        assert not report.guilty
        assert report.p_value == 1


def test_other_keys_in_a_bundle_of_a_third_user(world: World) -> None:
    """Its header is signed, so that nothing else can be put in."""
    data = bytearray(world.bundle("erin").read_bytes())
    data[200] ^= 1
    with pytest.raises(Exception, match=r"wrong|malformed|canonical|Field"):
        world.tracer.bundle(KeyBundle.from_bytes(bytes(data)), "correct horse")


# --- what 0.3's break needed -----------------------------------------------------------


def folders(world: World) -> list[Path]:
    return sorted(path for path in world.folder.glob("evidence */*") if path.is_file())


def test_evidence_shows_no_z_no_point_and_no_polynomial(world: World) -> None:
    """0.3's folders were points P(x)·G: t + 1 of them gave a revoked user's key away."""
    keys = world.authority.keys
    secrets = [keys.read_master.secret_bytes(), keys.run_master.secret_bytes(), keys._secret]
    parts = [s[i : i + 32] for s in secrets for i in range(0, len(s) - 31, 32)]
    for user in USERS:
        if user != "carol":  # her z stands in headers, which are public
            parts.append(encode_scalar(world.keys(user).z))
        points = world.keys(user).reader.point, world.keys(user).runner
        parts += [point.secret_bytes()[32:] for point in points]
    assert len(folders(world)) > 30
    for path in folders(world):
        data = path.read_bytes()
        for part in parts:
            forms = part, base64.b64encode(part)[:40], part.hex().encode()
            assert not any(form in data for form in forms), path
        names = json.dumps(json.loads(data)) if path.suffix == ".json" else ""
        assert '"point"' not in names
        assert '"openings"' not in names
        assert '"z"' not in names


def test_evidence_opens_nothing_of_third_users(world: World) -> None:
    """Neither the key id of an innocent, nor a bit or slot key that the accused does not have."""
    ids = {user.subject: user.key_id for user in world.authority.users()}
    for user in ("dave", "erin"):
        for path in folders(world):
            if path.parent.name.endswith(user):
                data = path.read_bytes()
                others = (i for name, i in ids.items() if name != user)
                assert not any(i.encode() in data for i in others), path
    for path in world.folder.glob("evidence */statement.json"):
        for accused in json.loads(path.read_bytes())["statement"]["accused"]:
            codeword = world.keys(accused["subject"]).reader.slots
            shown = {base64.b64decode(bit["key"]) for bit in accused["bits"] if bit["key"]}
            assert shown <= {key.tobytes() for key in codeword.keys}


def test_a_revoked_users_point_identifies(world: World) -> None:
    """t + 1 traitors hold the polynomial, and her z is in public headers."""
    for point in (world.keys("carol").reader.point, world.keys("carol").runner):
        report = world.tracer.key(point)
        assert report.verdict == "identified"
        assert [s.subject for s in report.identified] == ["carol"]
    slot_keys = world.keys("carol").reader.slots.keys
    report = world.tracer.key(point, slot_keys)
    assert report.verdict == "guilty", "only she had these"


# --- lent decoders --------------------------------------------------------------------


@pytest.mark.parametrize("user", ["alice", "erin"])
def test_a_lent_decoder_accuses_not_its_own_user(world: World, user: str) -> None:
    """0.3 called them guilty: their own decoder makes their table of any plain service."""
    decoder = world.decoder(user)
    report = world.tracer.service(world.confused, model=MODEL, decoder=decoder, batch_size=512)
    assert report.verdict == "inconclusive"
    assert report.evidence["this is the model"] == "yes"
    assert user in report.evidence["decoded with the key of"]
    assert user not in {s.subject for s in report.suspects}


# --- traitors who compare ----------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("large")
    world = make_world(folder, USERS, trace_labels=448, homophones=16)
    yield world
    world.authority.close()


@pytest.mark.parametrize("strategy", ["strip", "neither", "random", "one of them", "halves"])
def test_two_traitors_who_compare_are_found(large: World, strategy: str) -> None:
    """0.3 never found two who answer with a class that neither of them reads.

    They do not know the biases: no evidence about this model was shown to them.
    """
    random, named = np.random.default_rng(0), 0
    pairs = [(a, b) for a in USERS for b in USERS if a < b]
    classes = large.assignment.num_classes
    for a, b in pairs:
        one, two = large.table(a), large.table(b)
        differ = one != two
        table = np.where(random.random(len(one)) < 0.5, one, two)
        if strategy == "strip":
            table[differ] = -1
        elif strategy == "neither":
            wrong = (np.maximum(one, two) + 1) % classes
            table[differ] = np.where(wrong == np.minimum(one, two), (wrong + 1) % classes, wrong)[
                differ
            ]
        elif strategy == "one of them":
            table = one
        elif strategy == "halves":
            table = np.where(np.arange(len(one)) % 2, one, two)
        guilty = {s.subject for s in large.tracer.table(table, model=MODEL).guilty}
        assert guilty <= {a, b}
        named += bool(guilty)
    assert named >= len(pairs) - 1


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """No evidence was written yet."""
    world = make_world(tmp_path_factory.mktemp("fresh"), USERS, trace_labels=128)
    yield world
    world.authority.close()


def test_one_traitor_is_found_with_the_default_labels(fresh: World) -> None:
    for user in ("alice", "bob", "dave", "erin"):
        guilty = [s.subject for s in fresh.trace(fresh.table(user)).guilty]
        assert guilty == [user]


def test_pooled_bundles_name_both(fresh: World) -> None:
    keys = [fresh.keys(user).reader.slots.keys for user in INSIDERS]
    for seed in range(5):
        mask = np.random.default_rng(seed).random((len(keys[0]), 1)) < 0.5
        report = fresh.tracer.key(None, np.where(mask, *keys))
        assert sorted(s.subject for s in report.guilty) == list(INSIDERS)
