"""A folder of evidence is no kit to accuse the same user again."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from keras_encryip.authority.authority import Authority
from keras_encryip.errors import EvidenceError
from keras_encryip.tracing.events import EVIDENCE_WRITTEN
from keras_encryip.tracing.fingerprint import embed
from keras_encryip.tracing.statement import parse_statement
from keras_encryip.tracing.verify_evidence import verify_evidence
from tests.authority.worlds import MODEL, OWNER, World, make_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = make_world(tmp_path)
    yield world
    world.authority.close()


def events(world: World) -> list[dict[str, object]]:
    return [e.details for e in world.authority.events() if e.kind == EVIDENCE_WRITTEN]


@pytest.mark.parametrize("kind", ["service", "table"])
def test_shown_slots_convict_nobody_again(world: World, kind: str) -> None:
    first = world.trace(world.table("alice"))
    assert "shown in earlier evidence" not in first.evidence
    folder = world.evidence(first, "case-1")
    statement = json.loads((folder / "statement.json").read_bytes())["statement"]
    (alice,) = (u.key_id for u in world.authority.users() if u.subject == "alice")
    slots = sorted(one["slot"] for one in statement["slots"])
    assert events(world) == [
        {
            "accused": [alice],
            "codebook": world.codebook.codebook_id.hex(),
            "slots": slots,
            "traced": "service",
        }
    ]
    # Whoever has the folder answers as it says that alice would.
    table = world.table("bob")
    for one, bit in zip(statement["live"], statement["accused"][0]["bits"], strict=True):
        table[one["label"]] = one["classes"][bit["bit"]]
    again = world.trace(table) if kind == "service" else world.tracer.table(table, model=MODEL)
    assert (again.verdict, [s.subject for s in again.identified]) == ("identified", ["alice"])
    assert "alice on 20" in again.evidence["shown in earlier evidence"]
    assert "alice" not in {s.subject for s in again.guilty}


def test_others_are_convicted_as_before(world: World) -> None:
    world.evidence(world.trace(world.table("alice")), "case-1")
    report = world.trace(world.table("bob"))
    assert [s.subject for s in report.guilty] == ["bob"]
    assert verify_evidence(world.evidence(report, "case-2")).p_values["bob"] <= 1e-6


def test_slots_that_were_not_shown_still_convict(world: World) -> None:
    """Evidence of answers opens 64 of 1,024 slots: alice's bundle is found later."""
    keys = world.keys("alice").reader.slots.keys
    whole = world.tracer.key(None, keys)
    world.evidence(world.trace(world.table("alice")), "case-1")
    report = world.tracer.key(None, keys)
    assert [s.subject for s in report.guilty] == ["alice"]
    assert report.guilty[0].score < 0.97 * whole.guilty[0].score
    found = verify_evidence(world.evidence(report, "case-2"))
    assert found.p_values["alice"] <= 1e-6
    shown = set(events(world)[0]["slots"]) | set(events(world)[1]["slots"])  # type: ignore[call-overload]
    keys = keys.copy()
    keys[[s for s in range(1024) if s not in shown]] = 0
    assert world.tracer.key(None, keys).verdict == "identified"


def test_a_report_from_before_is_evidence_after(world: World) -> None:
    """What was traced before a folder was out was not made from that folder."""
    first, second = (world.trace(world.table("alice")) for _ in range(2))
    world.evidence(first, "case-1")
    assert verify_evidence(world.evidence(second, "case-2")).p_values["alice"] <= 1e-6


def test_a_shown_mark_convicts_nobody_again(world: World) -> None:
    owner = world.authority
    kernels = [np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)]
    recipient = owner.user_store.recipient("alice")
    owner.export_store.add_export(
        world.codebook, b"copy", folder="copies/7", recipient=recipient, kernels=kernels
    )
    marked = embed(kernels, owner.keys.fingerprint_key(1, recipient))
    first = world.tracer.weights(marked, model=MODEL, reference=kernels)
    assert first.verdict == "guilty"
    world.evidence(first, "case-1")
    again = world.tracer.weights(marked, model=MODEL, reference=kernels)
    assert (again.verdict, again.identified[0].subject) == ("identified", "alice")
    assert "alice" in again.evidence["shown in earlier evidence"]
    assert world.trace(world.table("alice")).verdict == "guilty", "no slot was shown"


def test_a_failure_before_the_folder_appears_leaves_at_most_an_event(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = world.trace(world.table("alice"))

    def fail(self: Path, target: Path) -> None:
        raise OSError("no")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(Exception, match="case-1"):
        world.evidence(report, "case-1")
    assert not (world.folder / "case-1").exists()
    assert len(events(world)) == 1


def test_refused_evidence_leaves_no_event(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise EvidenceError("no")

    report = world.trace(world.table("alice"))
    monkeypatch.setattr("keras_encryip.authority.write_evidence.verify_evidence", refuse)
    with pytest.raises(EvidenceError):
        world.evidence(report, "case-1")
    assert not events(world)


def test_the_authority_opens_afterwards(world: World) -> None:
    world.evidence(world.trace(world.table("alice")), "case-1")
    world.authority.close()
    with Authority.open(world.folder / "acme.authority", OWNER) as again:
        assert again.events()[-1].kind == EVIDENCE_WRITTEN


def test_what_a_folder_opens_shows_itself_nowhere_else(world: World) -> None:
    folder = world.evidence(world.trace(world.table("alice")), "case-1")
    statement = parse_statement((folder / "statement.json").read_bytes()).statement
    for part in (
        statement,
        statement.accused[0],
        statement.accused[0].bits[0],
        statement.slots[0],
        statement.live[0],
    ):
        assert repr(part) == f"<{type(part).__name__}>"
