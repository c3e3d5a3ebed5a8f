"""Re-implemented peers: their formulas, their marks, and their published weaknesses."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit
from scipy.stats import binom
from sklearn.neighbors import NearestNeighbors

from benchmarks import backbones
from benchmarks.data import Data, load
from benchmarks.peers import PEERS, Adi, Passport, Peer, Uchida, adi
from benchmarks.peers.base import copied, late_convolutions
from benchmarks.peers.passport import (
    PassportConv2D,
    install,
    mixed,
    passport_unit,
    random_bits,
    random_passports,
    signs,
)
from benchmarks.peers.uchida import Penalty, filters_mean, marked_kernel
from benchmarks.training import Schedule, accuracy, train

# Keras says so of every shuffled tf.data.Dataset that `fit` gets.
pytestmark = [
    pytest.mark.slow,  # trains attackers and peers, for minutes
    pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning"),
]

FIRST, SECOND = Schedule(4, 16), Schedule(1, 32)
FOUND, CHANCE = 1e-6, 1e-3
COPIES = {
    "uchida": (None, ("alice", "bob")),
    "adi": (48, ("alice",)),
    "passport": (160, ("alice",)),
}
NAMES = [peer.name for peer in PEERS]


@pytest.fixture(scope="module")
def data() -> Data:
    return load("digits", 1000, 397)


@pytest.fixture(scope="module")
def twin(data: Data) -> keras.Model:
    """The unprotected classifier."""
    keras.utils.set_random_seed(0)
    model = backbones.build(data.name, data.x.shape[1:])
    train(model, data.x, data.y, FIRST, augment=False)
    return model


@pytest.fixture(scope="module")
def peers(data: Data) -> dict[str, Peer]:
    made = {peer.name: peer(0) for peer in PEERS}
    assert all(peer.fit(data, FIRST, SECOND) > 0 for peer in made.values())
    return made


def outputs(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(model(x, training=False))


# --- every peer ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_mark_is_in_the_owners_model_alone(name, peers, twin):
    folded = peers["passport"].folded()
    others = [twin, *(p.model for n, p in peers.items() if n not in (name, "passport"))]
    others += [folded] if name != "passport" else []
    found = peers[name].detect()
    assert found.p_value < FOUND
    assert found.score > 0.85
    assert found.hits + found.errors == found.trials
    assert all(peers[name].detect(other).p_value > CHANCE for other in others)
    assert peers[name].detect(user="stranger").p_value > CHANCE


@pytest.mark.parametrize("name", NAMES)
def test_classifies_as_well_as_the_twin(name, peers, twin, data):
    assert accuracy(peers[name].model, data) > accuracy(twin, data) - 0.03


@pytest.mark.parametrize("name", NAMES)
def test_the_mark_survives_files_and_copies(name, peers, data, tmp_path):
    peer = peers[name]
    peer.model.save(tmp_path / "model.keras")
    expected = outputs(peer.model, data.x_test)
    for same in (keras.models.load_model(tmp_path / "model.keras"), copied(peer.model)):
        np.testing.assert_allclose(outputs(same, data.x_test), expected, atol=1e-6)
        assert peer.detect(same) == peer.detect()


@pytest.mark.parametrize("name", NAMES)
def test_personal_copies_are_told_apart(name, peers, data):
    peer, (steps, users) = peers[name], COPIES[name]
    before = peer.model.get_weights()
    for user in users:
        copy, seconds = peer.personalise(data, user, steps)
        assert seconds > 0
        assert accuracy(copy, data) > 0.85
        p_values = {u: peer.detect(copy, u).p_value for u in ("alice", "bob", "carol")}
        assert p_values.pop(user) < FOUND
        assert min(p_values.values()) > CHANCE
    for weight, kept in zip(peer.model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)


def test_only_passports_lock_the_function(peers, data):
    for name in ("uchida", "adi"):
        assert peers[name].without_key(data) == accuracy(peers[name].model, data)
    assert peers["passport"].without_key(data) < 0.5
    assert peers["passport"].with_similar_key(data) < 0.5


def test_forgery(peers, twin):
    """Uchida's and Adi's forged secrets pass on a model without any mark."""
    for name in ("uchida", "adi"):
        assert peers[name].detect(twin).p_value > CHANCE
        assert peers[name].forge(twin).score == 1
    assert peers["passport"].forge(peers["passport"].model).p_value > CHANCE


@pytest.mark.parametrize("name", NAMES)
def test_the_owners_loss_stays_out_of_the_model(name, peers, data):
    for model in (peers[name].model, copied(peers[name].model)):
        model(data.x[:2], training=True)
        assert model.losses == []


# --- Uchida --------------------------------------------------------------------------


def test_penalty_is_the_papers():
    random = np.random.default_rng(0)
    kernel, secret = random.normal(size=(3, 3, 4, 5)), random.normal(size=(36, 16))
    bits = random.integers(0, 2, 16)
    y = expit(kernel.mean(3).ravel() @ secret)
    expected = -0.01 * np.sum(bits * np.log(y) + (1 - bits) * np.log(1 - y))
    penalty = Penalty(secret, bits)(keras.Variable(kernel))
    assert float(penalty) == pytest.approx(expected, rel=1e-5)


def test_training_writes_the_bits(peers, data):
    keras.utils.set_random_seed(0)
    fresh = backbones.build(data.name, data.x.shape[1:])
    assert 0.35 < peers["uchida"].detect(fresh).score < 0.65
    assert peers["uchida"].detect().score > 0.85


@pytest.mark.parametrize(
    ("name", "shape", "kernel", "bits"),
    [
        ("digits", (8, 8, 1), (3, 3, 32, 64), 128),
        ("mnist", (28, 28, 1), (3, 3, 16, 32), 64),
        ("cifar10", (32, 32, 3), (3, 3, 64, 64), 256),
    ],
)
def test_the_marked_kernel(name, shape, kernel, bits):
    model = backbones.build(name, shape)
    assert marked_kernel(model).shape == kernel
    assert Uchida(0).detect(model).trials == bits


def test_a_copys_filters_move_alike(peers, data):
    """As the penalty's gradient moves them; nothing else changes."""
    peer = peers["uchida"]
    copy, _ = peer.personalise(data, "dave")
    moved = np.asarray(marked_kernel(copy)) - np.asarray(marked_kernel(peer.model))
    np.testing.assert_allclose(moved, np.broadcast_to(moved[..., :1], moved.shape), atol=1e-6)
    assert np.abs(moved).max() > 1e-3
    assert peer.detect(copy, "dave").score == 1
    one, _ = peer.personalise(data, "dave", 1)
    step = filters_mean(marked_kernel(one)) - filters_mean(marked_kernel(peer.model))
    secret, bits = peer._secrets(marked_kernel(peer.model), "dave")
    gradient = secret @ (expit(filters_mean(marked_kernel(peer.model)) @ secret) - bits)
    assert np.corrcoef(step, gradient)[0, 1] == pytest.approx(-1, abs=1e-4)


# --- Adi -----------------------------------------------------------------------------


def test_p_value_is_the_binomial_tail(peers, twin):
    found = peers["adi"].detect(twin)
    assert found.trials == 100
    tail = sum(binom.pmf(k, 100, 0.1) for k in range(found.hits, 101))
    assert found.p_value == pytest.approx(tail)


def test_commitments_bind(peers):
    """A key with one other label or pixel does not open what was published."""
    peer = peers["adi"]
    key = peer.key(None)
    assert adi.verify(peer.model, key, peer.published).score > 0.9
    labels, images = key.labels.copy(), key.images.copy()
    labels[7] = (labels[7] + 1) % 10
    images[7, 0, 0] = 1 - images[7, 0, 0]
    for other in (
        adi.TriggerKey(key.images, labels, key.nonces),
        adi.TriggerKey(images, key.labels, key.nonces),
    ):
        assert adi.verify(peer.model, other, peer.published).hits == 0


@pytest.mark.parametrize(
    ("batch", "steps", "expected"),
    [(100, 10_000, 2), (128, 1256, 3), (32, 10_000, 1), (32, 512, 4), (32, 192, 11)],
)
def test_triggers_per_batch(batch, steps, expected):
    """2 per 100 images, but at least 20 shows of each of 100 triggers."""
    assert adi.triggers_per_batch(batch, steps, 20) == expected


def test_triggers_ride_in_every_batch_unchanged(peers, data):
    key = peers["adi"].key(None)
    labels = {image.tobytes(): label for image, label in zip(key.images, key.labels, strict=True)}
    shown = []
    batches = adi.with_triggers(data, key, batch=32, steps=512, shows=20)
    for x, y in batches.repeat().take(25):
        shown += zip([image.tobytes() for image in x.numpy()[-4:]], y.numpy()[-4:], strict=True)
    assert len(batches) == 32
    assert all(labels[image] == label for image, label in shown)
    assert len({image for image, _ in shown}) == 100


# --- Passport ------------------------------------------------------------------------


def test_scale_bias_and_sign_loss_are_the_papers():
    random = np.random.default_rng(0)
    layer = PassportConv2D(5, 3, padding="same", use_bias=False)
    x = random.normal(size=(4, 6, 6, 2)).astype("float32")
    layer.build(x.shape)
    passport = random.uniform(-1, 1, (2, 6, 6, 2))
    layer.passport.assign(passport)
    kernel = np.asarray(layer.kernel, np.float64)

    def averaged(image: np.ndarray) -> np.ndarray:
        wide = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        spots = [(i, j) for i in range(6) for j in range(6)]
        return sum(np.tensordot(wide[i : i + 3, j : j + 3], kernel, 3) for i, j in spots) / 36

    beta, gamma = averaged(passport[0]), averaged(passport[1])
    np.testing.assert_allclose(layer.scale_and_bias(), [beta, gamma], atol=1e-5)

    plain = np.asarray(layer.convolution_op(x, layer.kernel))
    expected = gamma * plain / np.sqrt(1 + layer.norm.epsilon) + beta
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)

    layer(x, training=True)
    assert layer.losses == []
    layer.bits = np.array([1, -1, 1, 1, -1])
    layer(x, training=True)
    expected = 0.1 * np.maximum(0, 0.1 - layer.bits * gamma).sum() + 1e-5 * (gamma**2).sum()
    assert float(layer.losses[0]) == pytest.approx(expected, rel=1e-4)


def test_folding_needs_no_passport(peers, data):
    """The published attack: the same function in the plain backbone, which stays marked."""
    peer = peers["passport"]
    folded = peer.folded()
    assert not any(isinstance(layer, PassportConv2D) for layer in folded.layers)
    np.testing.assert_allclose(
        outputs(folded, data.x_test),
        outputs(peer.model, data.x_test),
        atol=1e-4,
    )
    assert peer.detect(folded) == peer.detect()


def test_folding_finds_all_layers_of_resnet20():
    random = np.random.default_rng(0)
    peer = Passport(0)
    peer.model = backbones.build("cifar10", (32, 32, 3), passport_unit)
    install(peer.model, random_passports(peer.model, random))
    for weight in peer.model.weights:
        if "norm" in weight.path:
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
    x = random.uniform(size=(4, 32, 32, 3)).astype("float32")
    expected = np.asarray(peer.model(x))
    assert np.ptp(expected, axis=0).max() > 1e-3
    np.testing.assert_allclose(peer.folded()(x), expected, atol=1e-4)
    bits, passports = random_bits(peer.model, random), random_passports(peer.model, random)
    found = signs(peer.model, passports, bits)
    assert found == signs(peer.folded(), passports, bits)
    assert found.trials == 7 * 64


def test_an_exported_model_recomputes_from_its_passport(peers, data, tmp_path: Path):
    peer = peers["passport"]
    peer.model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    x = data.x_test[:8]
    expected = outputs(peer.model, x)
    np.testing.assert_allclose(served.serve(x), expected, atol=1e-5)
    (passport,) = (v for v in served.variables if v.shape == (2, 8, 8, 32))
    passport.assign(tf.zeros_like(passport))
    assert np.abs(np.asarray(served.serve(x)) - expected).max() > 0.1


def test_shuffled_passports_mix_features_of_the_pretrained_model(data, twin):
    peer = Passport(0)
    (passport,), _ = peer.build(data, pretrained=twin)
    (theirs,) = late_convolutions(twin)
    maps = np.asarray(keras.Model(twin.input, theirs.input)(data.x))
    known = maps.transpose(0, 3, 1, 2).reshape(-1, 64)
    chosen = passport.transpose(0, 3, 1, 2).reshape(-1, 64)
    distances, found = NearestNeighbors(n_neighbors=1).fit(known).kneighbors(chosen)
    assert distances.max() < 1e-4
    assert len(np.unique(found[:32, 0] // 32)) == 20


def test_mixing_takes_no_map_twice():
    maps = np.arange(3 * 8, dtype=float).reshape(3, 1, 1, 8)
    chosen = mixed(maps, np.random.default_rng(0))[0, 0]
    assert len(set(chosen)) == 8
    np.testing.assert_array_equal(chosen // 8, np.arange(8) % 3)


def test_users_have_secrets_of_their_own():
    a, b = (Adi(seed).random("alice").random() for seed in (0, 1))
    assert len({a, b, Adi(0).random(None).random(), Adi(0).random("owner").random()}) == 4
    assert Adi(0).random("alice").random() == a
