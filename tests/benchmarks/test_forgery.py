"""Made-up keys, claims and evidence are refused; where they are not, the figures say so."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import forgery
from benchmarks import rows as rows_module
from benchmarks.data import Data
from benchmarks.forgery import changes, claiming, ground, keys
from benchmarks.forgery.ground import ACCEPTED
from benchmarks.forgery.keys import Pooled, opens, reads
from benchmarks.rows import Rows, read
from benchmarks.sizes import QUICK
from benchmarks.trainings import Trained, Trainings
from keras_encryip.crypto.polynomial import ORDER
from keras_encryip.errors import ArgumentError

pytestmark = pytest.mark.long

EXPECTED = "EvidenceError: The evidence was signed by another authority than expected."


# --- keys --------------------------------------------------------------------------------


def test_random_keys_are_nobodys() -> None:
    found = keys.random_keys(20)
    assert (found["tried"], found["on the polynomial"], found["opened"]) == (20, 0, 0)
    assert found["opened at most"] == pytest.approx(1 - 0.05 ** (1 / 20))
    assert found["ordinary labels read"] < 0.4


def test_real_keys_open_what_random_ones_do_not() -> None:
    """The control: `opens` and `reads` do find keys."""
    with ground.authority(2) as (owner, folder):
        key = ground.issued(owner, "user", folder)
        codebook, assignment = ground.release(owner, "digits")
        assert opens(codebook, key.point)
        assert reads(codebook, assignment, key.point, key.slots) == 1
        pooled = Pooled([key.point], [1])
        assert opens(codebook, pooled)
        assert reads(codebook, assignment, pooled, key.slots) == 1


@pytest.mark.parametrize("members", [1, 2, 5])
def test_random_shares(members: int) -> None:
    shares = keys.random_shares(members)
    assert (len(shares), sum(shares) % ORDER) == (members, 1)


@pytest.mark.parametrize("threshold", [1, 2, 4, 5])
def test_pooled_keys(threshold: int) -> None:
    """Exactly the owners up to ⌊t/2⌋; sharp at t + 1: one key more mints."""
    runs = 2
    found = keys.pooled_keys(threshold, runs, seed=0)
    most = max(1, threshold // 2)
    assert list(found) == [f"{m} users" for m in range(1, threshold + 3)]
    for m, row in enumerate(found.values(), start=1):
        assert (row["opened"], row["read all"]) == (runs, runs), m
        assert (row["innocents"], row["some"]) == (0, 0), m
        named = runs if m <= most else 0
        assert (row["all"], row["nobody"]) == (named, runs - named), m
        minted = runs if m > threshold else 0
        assert (row["minted"], row["on the polynomial"]) == (minted, minted), m
        # The limit that `find_traitors` states, for who knows the z of innocents.
        framed = runs if threshold + 2 - most <= m <= threshold + 1 else 0
        assert row["framed"] == framed, m


# --- claims ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(digits: Any) -> Data:
    x, y = digits.x, digits.y
    return Data("digits", x[:9], y[:9], digits.x_test, digits.y_test, x[9:], y[9:])


def test_fitted_inputs_are_answered_as_wanted(
    trained_classifier: Any, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "FITTING_STEPS", 100)
    make = claiming.makers({"it": trained_classifier}, data, 0)
    wanted = np.arange(40) % 10
    found = {
        kind: float((trained_classifier.predict(inputs, verbose=0).argmax(-1) == wanted).mean())
        for kind in make
        if (inputs := make[kind](wanted)).shape == (40, 8, 8, 1)
        and 0 <= inputs.min() <= inputs.max() <= 1
    }
    assert set(found) == {"random", "natural", "fitted to it"}
    assert found["random"] < 0.5
    assert found["natural"] > 0.8
    assert found["fitted to it"] > 0.9


@pytest.mark.parametrize("kind", ["random", "natural"])
def test_claims(trained_classifier: Any, data: Data, kind: str) -> None:
    """What another authority makes up convinces nobody who knows the owner's signature."""
    make = claiming.makers({}, data, 0)[kind]
    with ground.authority() as (owner, _), ground.authority() as (forger, folder):
        ground.commit(owner, ground.release(owner, "digits")[0])
        key = ground.issued(forger, "scapegoat", folder)
        services = {"it": trained_classifier}
        row = claiming.claim(forger, key, make, services, owner, folder)["it"]
    if kind == "random":
        assert (row["verdict"], row["accused"]) == ("inconclusive", "")
        assert row["this is the model"] == "not shown"
        assert row["not committed"].startswith("ArgumentError: An inconclusive report")
        assert row["committed"] == row["not committed"]
    else:
        assert (row["verdict"], row["accused"]) == ("guilty", "scapegoat")
        assert row["not committed"].startswith("EvidenceError: No signed event 'model exported'")
        assert row["the owner's signature expected"] == EXPECTED


def test_outcomes() -> None:
    def refuse() -> None:
        raise ArgumentError("no")

    assert ground.outcome(lambda: None) == ACCEPTED
    assert ground.outcome(refuse) == "ArgumentError: no"
    with pytest.raises(ZeroDivisionError):
        ground.outcome(lambda: 1 / 0)


# --- evidence ----------------------------------------------------------------------------


def test_changed_evidence_is_refused() -> None:
    found = changes.changed_evidence()
    assert found["honest"] == ACCEPTED, "the control of all that follows"
    assert found["honest, another issuer expected"] == EXPECTED
    assert found["one byte"] == {"tried": 15, "refused": 15}
    commitments = {
        "trace set": ("model exported", "model_trace_set or trace_set"),
        "codebook": ("codebook made", "codebook, codebook_digest"),
    }
    for target, (kind, facts) in commitments.items():
        rows = found[f"{target} replaced"]
        assert rows["files alone"].startswith("EvidenceError: ")
        signature = "SignatureError: The signature of the evidence is wrong"
        assert rows["statement adapted"].startswith(signature)
        event = "SignatureError: The signature of the event is wrong"
        assert rows["signed by another authority"].startswith(event)
        late = f"No signed event {kind!r} from before the trace commits to its {facts}."
        assert rows["signed by the owner"] == f"EvidenceError: {late}"


# --- all ---------------------------------------------------------------------------------


def test_rows_resume(
    trained_classifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is measured again, and nothing is trained for what is there."""

    def none(*_: Any) -> Any:
        raise AssertionError("measured again")

    def run() -> list[dict[str, Any]]:
        rows = Rows(tmp_path / "rows.jsonl", "digits", 3, "small")
        for suite in (forgery.run, forgery.run_claims):
            suite(trainings, rows)
        return read(rows.path).to_dict("records")

    twin = Trained(trained_classifier, 1.0)
    monkeypatch.setattr(rows_module, "hardware", lambda: "here")
    for name, value in {"KEYS": 2, "THRESHOLDS": (1, 2), "COALITIONS": 1}.items():
        monkeypatch.setattr(forgery, name, value)
    monkeypatch.setattr(forgery, "world", lambda *_: "world")
    monkeypatch.setattr(forgery, "claims", lambda *given: {"given": " ".join(map(str, given))})
    trainings = Trainings(QUICK[0], 3)
    trainings.once("twin", lambda: twin)
    found = run()
    given = [row["value"] for row in found if row["metric"] == "given"]
    assert given == [f"world {trained_classifier} 3"]
    assert {(row["attack"], row["setting"]) for row in found} == {
        ("", ""),
        ("random keys", ""),
        ("pooled keys", "t = 1"),
        ("pooled keys", "t = 2"),
        ("changed evidence", ""),
        ("claims", ""),
    }
    for name in ("random_keys", "pooled_keys", "changed_evidence", "claims", "world"):
        monkeypatch.setattr(forgery, name, none)
    assert run() == found
