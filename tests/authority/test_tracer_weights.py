"""`Tracer.weights`: whose copy weights come from, whatever was done to them, and nobody else's."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_encryip as ke
from keras_encryip.authority.tracer import Tracer
from keras_encryip.errors import ArgumentError, FormatError, LedgerError
from keras_encryip.tracing.alignment import match
from keras_encryip.tracing.fingerprint import embed
from keras_encryip.tracing.weights import kernels_of, read_kernels

PASSPHRASE = "correct horse"
LEAKERS = ("alice", "bob", "carol")
RECIPIENTS = 50
Kernels = list[np.ndarray]


@dataclass(frozen=True)
class House:
    """A model exported for 50 users; the files of three of them are there.

    `dave` has a key and no copy; `erin` had a copy before she was revoked.
    """

    authority: ke.Authority
    model: ke.ProtectedModel
    folder: Path

    @property
    def originals(self) -> Kernels:
        return [kernel.numpy() for kernel in kernels_of(self.model)]

    def key(self, user: str) -> bytes:
        key_id = {u.subject: u.key_id for u in self.authority.users()}[user]
        return self.authority.keys.fingerprint_key(
            self.authority.model_store.model_named("digits").model_id, key_id
        )

    def copy(self, user: str) -> Kernels:
        """The kernels of a user's files, in the model's order."""
        found = match(read_kernels(self.folder / user), self.originals)
        return [kernel for kernel in found if kernel is not None]

    def thief(self, kernels: Kernels) -> ke.ProtectedModel:
        """The locked model with these kernels."""
        body = keras.models.load_model(self.folder / "digits.keras")
        for variable, kernel in zip(kernels_of(body), kernels, strict=True):
            variable.assign(kernel)
        return body

    def trace(self, suspect: Any, **arguments: Any) -> Any:
        return Tracer(self.authority).weights(suspect, **{"model": self.model, **arguments})

    def guilty(self, suspect: Any, **arguments: Any) -> list[str]:
        return sorted(s.subject for s in self.trace(suspect, **arguments).guilty)


@pytest.fixture(scope="module")
def house(
    digits: Any, new_classifier: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    url = f"sqlite:///{folder}/own.authority"
    with ke.Authority.create(url, PASSPHRASE, scrypt_log2_n=14) as authority:
        options = {"homophones": 4, "trace_labels": 0}
        model = ke.protect(new_classifier(), authority, name="digits", **options)
        optimizer = keras.optimizers.Adam(0.01)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(digits.x, digits.y, batch_size=64, epochs=12, verbose=0)
        model.save(folder / "digits.keras")
        made = House(authority, model, folder)
        codebook = authority.model_store.codebooks_of(
            authority.model_store.model_named("digits").model_id
        )[0]

        def hand_out(key_id: str) -> None:
            """What an export leaves in the ledger."""
            authority.export_store.add_export(
                codebook, b"", folder="1", recipient=key_id, kernels=made.originals
            )

        for user in (*LEAKERS, "dave", "erin"):
            path = folder / f"{user}.keybundle"
            key_id = authority.issue(user, path, passphrase=PASSPHRASE, scrypt_log2_n=14).key_id
            if user in LEAKERS:
                ke.export_saved_model(model, folder / user, recipient=user)
            elif user == "erin":
                hand_out(key_id)
        authority.revoke("erin")
        for other in authority.enroll(f"user {i}" for i in range(RECIPIENTS - 4)):
            hand_out(other.key_id)
        ke.export_saved_model(model, folder / "plain")
        yield made


@pytest.fixture(scope="module")
def foreign(house: House, digits: Any, new_classifier: Any) -> ke.ProtectedModel:
    """The same architecture, protected by the same owner, from another training."""
    options = {"homophones": 4, "trace_labels": 0}
    model = ke.protect(new_classifier(seed=5), house.authority, name="other", **options)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(digits.x, digits.y, batch_size=64, epochs=3, verbose=0)
    return model


# --- wherever the weights are found --------------------------------------------------


def test_report_of_a_leaked_folder(house: House) -> None:
    report = house.trace(house.folder / "bob")
    assert (report.verdict, report.kind, report.model) == ("guilty", "weights", "digits")
    assert [s.subject for s in report.guilty] == ["bob"]
    assert report.suspects[0].key_id == house.authority.user_store.recipient("bob")
    assert report.p_value == report.suspects[0].p_value < 1e-100
    assert report.tested == len(report.scores) == RECIPIENTS
    assert report.tests == 2 * RECIPIENTS
    assert report.scores == sorted(report.scores, reverse=True)
    assert report.scores[0] > 40 > report.threshold > 5 > report.scores[1]
    assert report.threshold == pytest.approx(np.sqrt(2 * np.log(2 * RECIPIENTS / 1e-6)))
    assert report.evidence["kernels found"] == "2 of 2"
    assert report.evidence["original weights"] == "as exported"
    assert ke.TraceReport.from_bytes(report.to_bytes()).suspects == report.suspects
    assert "guilty: bob" in str(report)


@pytest.mark.parametrize("user", LEAKERS)
def test_every_form_of_a_copy(user: str, house: House, tmp_path: Path) -> None:
    kernels = house.copy(user)
    thief = house.thief(kernels)
    thief.save(tmp_path / "stolen.keras")
    thief.save_weights(tmp_path / "stolen.weights.h5")
    np.savez(tmp_path / "stolen.npz", *kernels)
    for suspect in (
        house.folder / user,
        str(house.folder / user),
        tmp_path / "stolen.keras",
        tmp_path / "stolen.weights.h5",
        tmp_path / "stolen.npz",
        thief,
        kernels,
        kernels[::-1],
        thief.get_weights(),
        {"a": kernels[1], "b": kernels[0]},
        kernels[:1],
    ):
        assert house.guilty(suspect) == [user], suspect


def test_a_revoked_users_copy_is_still_theirs(house: House) -> None:
    report = house.trace(embed(house.originals, house.key("erin")))
    assert [(s.subject, s.status) for s in report.guilty] == [("erin", "revoked")]


# --- whatever was done to them -------------------------------------------------------


def tuned(house: House, digits: Any, kernels: Kernels) -> Kernels:
    """Fine-tuned as a recipient can: through the decode table."""
    decoder = ke.Decoder.open(house.folder / "alice", house.folder / "alice.keybundle", PASSPHRASE)
    body = house.thief(kernels)
    inputs = keras.Input(digits.x.shape[1:])
    to_class = keras.layers.Dense(10, use_bias=False, trainable=False)
    confused = body.confused_labels(body.backbone(inputs))
    decoded = keras.Model(inputs, to_class(confused))
    to_class.set_weights([np.eye(10, dtype="float32")[decoder.secret_table()]])
    loss = "sparse_categorical_crossentropy"
    decoded.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    fitted = decoded.fit(digits.x, digits.y, batch_size=64, epochs=5, verbose=0)
    assert fitted.history["accuracy"][-1] > 0.95
    return [kernel.numpy() for kernel in kernels_of(body)]


def pruned(kernel: np.ndarray, share: float) -> np.ndarray:
    return np.where(np.abs(kernel) < np.quantile(np.abs(kernel), share), 0, kernel)


def integers(kernel: np.ndarray) -> np.ndarray:
    return np.round(kernel / np.abs(kernel).max() * 127).astype(np.int8)


def permuted(kernels: Kernels) -> Kernels:
    order = np.random.default_rng(1).permutation(kernels[0].shape[1])
    return [kernels[0][:, order], kernels[1][order]]


ATTACKS: dict[str, Callable[[Kernels], Kernels]] = {
    "float16": lambda kernels: [k.astype(np.float16) for k in kernels],
    "int8": lambda kernels: [integers(k) for k in kernels],
    "int8, rescaled": lambda kernels: [integers(k) * np.float32(0.01) for k in kernels],
    "pruned 50 %": lambda kernels: [pruned(k, 0.5) for k in kernels],
    "pruned 70 %": lambda kernels: [pruned(k, 0.7) for k in kernels],
    "permuted": permuted,
    "permuted, int8": lambda kernels: [integers(k) for k in permuted(kernels)],
    "other scales": lambda kernels: [kernels[0] * 2, kernels[1] / 2],
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacked_copies(attack: str, house: House, tmp_path: Path) -> None:
    suspect = ATTACKS[attack](house.copy("alice"))
    np.savez(tmp_path / "suspect.npz", *suspect)
    assert house.guilty(suspect) == ["alice"]
    assert house.guilty(tmp_path / "suspect.npz") == ["alice"]


def test_fine_tuned_copy(house: House, digits: Any) -> None:
    start = house.copy("alice")
    suspect = tuned(house, digits, start)
    assert all((a != b).mean() > 0.5 for a, b in zip(suspect, start, strict=True))
    assert house.guilty(suspect) == ["alice"]
    assert house.guilty([pruned(kernel, 0.5) for kernel in suspect]) == ["alice"]


def test_averaged_copies_name_all_and_only_their_owners(house: House) -> None:
    copies = [house.copy(user) for user in LEAKERS]
    mean = [np.mean(kernels, 0) for kernels in zip(*copies, strict=True)]
    report = house.trace(mean)
    assert sorted(s.subject for s in report.guilty) == sorted(LEAKERS)
    assert report.scores[3] < 5
    for suspect in ([pruned(k, 0.5) for k in mean], [integers(k) for k in mean], permuted(mean)):
        assert house.guilty(suspect) == sorted(LEAKERS)


def test_permuted_average_names_all_its_owners(authority: Any, protect: Any) -> None:
    """One kernel, left in order, is enough for the first of them only."""
    codebook, _ = protect(authority)
    random = np.random.default_rng(0)
    shapes = [(3, 3, 16, 64), (1024, 128), (128, 20)]
    originals = [random.standard_normal(shape).astype("float32") for shape in shapes]
    model_id = authority.model_store.model_named("digits").model_id
    keys = []
    for user in authority.enroll(f"user {i}" for i in range(5)):
        authority.export_store.add_export(
            codebook, b"", folder="1", recipient=user.key_id, kernels=originals
        )
        keys.append(authority.keys.fingerprint_key(model_id, user.key_id))
    shares = [0.6, 0.1, 0.1, 0.1, 0.1]
    mean = [
        np.average(same, 0, shares)
        for same in zip(*(embed(originals, key, 0.03) for key in keys), strict=True)
    ]
    suspect = [k + 0.08 * random.standard_normal(k.shape) for k in mean]
    arguments = {"model": "digits", "reference": originals}
    assert len(Tracer(authority).weights(suspect, **arguments).guilty) == 5
    report = Tracer(authority).weights([suspect[0], *permuted(suspect[1:])], **arguments)
    assert len(report.guilty) == 5


# --- which original ------------------------------------------------------------------


def test_forms_of_model_and_reference(house: House) -> None:
    suspect = house.folder / "carol"
    loaded = keras.models.load_model(house.folder / "digits.keras")  # locked
    for arguments in (
        {"model": loaded},
        {"model": "digits", "reference": house.model},
        {"model": "digits", "reference": house.folder / "digits.keras"},
        {"model": "digits", "reference": str(house.folder / "plain")},
        {"model": "digits", "reference": house.originals},
        {"model": house.model, "reference": house.folder / "plain"},
    ):
        report = house.trace(suspect, **arguments)
        assert [s.subject for s in report.guilty] == ["carol"], arguments
        assert report.evidence["original weights"] == "as exported"


def test_another_original_is_said_to_be_one(house: House) -> None:
    """A neighbour's copy will do for the original; whose it is does not come out."""
    report = house.trace(house.folder / "alice", reference=house.folder / "bob")
    assert [s.subject for s in report.guilty] == ["alice"]
    assert report.evidence["original weights"] == "given, not what was exported"
    assert {s.subject: s.score for s in report.suspects}.get("bob", -1) < 0


def test_blind(house: House) -> None:
    """3,328 weights are too few without the original."""
    report = house.trace(house.folder / "alice", model="digits")
    assert report.verdict == "inconclusive"
    assert report.evidence["original weights"] == "blind: none given"
    assert report.tests == RECIPIENTS


def test_blind_with_many_weights(authority: ke.Authority, tmp_path: Path) -> None:
    """Two millions of them: the weights themselves are the noise."""
    layers = [keras.layers.Dense(2048), keras.layers.Dense(10)]
    classifier = keras.Sequential([keras.Input((1024,)), *layers])
    options = {"homophones": 1, "trace_labels": 0, "strategy": "random"}
    model = ke.protect(classifier, authority, name="wide", **options)
    for user in ("alice", "bob"):
        authority.issue(user, tmp_path / user, passphrase=PASSPHRASE, scrypt_log2_n=14)
        ke.export_saved_model(model, tmp_path / f"{user} 1", recipient=user)
    for user in ("alice", "bob"):
        report = Tracer(authority).weights(tmp_path / f"{user} 1", model="wide")
        assert [s.subject for s in report.guilty] == [user]
    clean = [kernel.numpy() for kernel in kernels_of(model)]
    assert Tracer(authority).weights(clean, model="wide").verdict == "inconclusive"


# --- nobody else ---------------------------------------------------------------------


def test_unmarked_weights_are_nobodys(house: House) -> None:
    for suspect in (house.folder / "plain", house.folder / "digits.keras", house.model):
        for model in (house.model, "digits"):
            assert house.trace(suspect, model=model).verdict == "inconclusive"


def test_users_without_a_copy_are_never_named(house: House) -> None:
    """Even if the weights carry what would be their mark."""
    report = house.trace(embed(house.originals, house.key("dave")))
    assert report.verdict == "inconclusive"
    assert report.tested == RECIPIENTS
    assert "dave" not in {s.subject for s in report.suspects}


def test_another_trainings_weights(house: House, foreign: Any, digits: Any) -> None:
    report = house.trace(foreign)
    assert report.verdict == "inconclusive"
    with pytest.raises(LedgerError, match=r"'other' was never exported with `recipient=\.\.\.`"):
        house.trace(house.folder / "alice", model=foreign)
    with pytest.raises(LedgerError, match=r"'other' was never exported with `recipient=\.\.\.`"):
        house.trace(house.folder / "alice", model="other")


def test_a_copy_of_one_model_says_nothing_about_another(
    house: House, foreign: Any, tmp_path: Path
) -> None:
    """The same users, one owner, two models: marks differ."""
    for user in ("alice", "bob"):
        ke.export_saved_model(foreign, tmp_path / user, recipient=user)
    assert house.trace(tmp_path / "alice").verdict == "inconclusive"
    assert house.trace(house.folder / "alice", model=foreign).verdict == "inconclusive"
    assert house.guilty(tmp_path / "alice", model=foreign) == ["alice"]


def test_nobody_is_accused_falsely(house: House, foreign: Any) -> None:
    """200 suspects without a recipient's mark, against 50 recipients."""
    random = np.random.default_rng(0)
    originals = house.originals
    others = [kernel.numpy() for kernel in kernels_of(foreign)]

    def noisy(kernels: Kernels) -> Kernels:
        size = 0.3 * random.random()
        return [k + size * k.std() * random.standard_normal(k.shape) for k in kernels]

    def marked() -> Kernels:
        return embed(originals, random.bytes(32))

    make = [
        lambda: noisy(originals),
        marked,
        lambda: noisy(marked()),
        lambda: [np.mean(ks, 0) for ks in zip(*(marked() for _ in range(5)), strict=True)],
        lambda: [pruned(k, random.uniform(0.3, 0.9)) for k in marked()],
        lambda: [integers(k) for k in marked()],
        lambda: permuted(marked()),
        lambda: noisy(others),
        lambda: [random.standard_normal(k.shape) for k in originals],
        lambda: [random.permuted(k, axis=None) for k in marked()],
    ]
    best = []
    for i in range(200):
        report = house.trace(make[i % len(make)](), model="digits", reference=originals)
        assert report.verdict == "inconclusive", i
        best.append(report.scores[0])
    assert max(best) < 5.5  # of 20,000 normal scores: 4.1, and a hundredth chance of 4.9


# --- refused -------------------------------------------------------------------------


def test_unusable_suspects(house: House, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="missing"):
        house.trace(tmp_path / "missing")
    with pytest.raises(ArgumentError, match="another architecture"):
        house.trace([np.ones((5, 7))])
    with pytest.raises(ArgumentError, match="Received: int"):
        house.trace(3)
    flat = [np.zeros_like(kernel) for kernel in house.originals]
    broken = [np.full_like(kernel, np.nan) for kernel in house.originals]
    for suspect in (flat, broken):
        assert house.trace(suspect).verdict == "inconclusive"


def test_unusable_models_and_references(house: House) -> None:
    suspect = house.folder / "alice"
    with pytest.raises(LedgerError, match=re.escape("has no model 'letters'. It has: 'digits'")):
        house.trace(suspect, model="letters")
    with pytest.raises(ArgumentError, match="must be a protected model or its name"):
        house.trace(suspect, model=house.originals)
    with pytest.raises(ArgumentError, match="another architecture"):
        house.trace(suspect, reference=[np.ones((5, 7))])
    with pytest.raises(ArgumentError, match="`reference` must be the model as it was exported"):
        house.trace(suspect, reference=house.originals[:1])
