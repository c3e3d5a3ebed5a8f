"""Training loops of users, weights of other codebooks, wrappers, backends, and strategies."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_encryip as ke
from keras_encryip.errors import EncryipError
from keras_encryip.labels.codebook import Codebook
from tests.models.classifiers import IMAGES, SOFT, class_probabilities, decoded, flat, randomise
from tests.models.custom_layers import K, OwnStep

ROOT = Path(__file__).parents[2]
OPTIONS = {"homophones": 2, "trace_labels": 0, "strategy": "random"}
Y = np.random.default_rng(5).integers(0, K, 12)
LOSS = "sparse_categorical_crossentropy"


def soft() -> keras.Model:
    keras.utils.set_random_seed(7)
    return flat(layers.Dense(K, **SOFT))


@pytest.fixture
def separable() -> tuple[np.ndarray, np.ndarray]:
    """Which third of the image is bright."""
    random = np.random.default_rng(0)
    y = random.integers(0, K, 96)
    x = random.normal(0, 0.2, (96, 8, 8, 1)).astype("float32")
    for i, k in enumerate(y):
        x[i, 2 * k : 2 * k + 2] += 1
    return x, y


# --- the classifier's own loop ---------------------------------------------------------------


@pytest.fixture
def own_step() -> OwnStep:
    keras.utils.set_random_seed(7)
    classifier = OwnStep("layer")
    classifier(IMAGES[:1])
    OwnStep.calls = 0
    return classifier


def test_own_train_step_is_called(
    own_step: OwnStep, separable: Any, shared_authority: ke.Authority
) -> None:
    """It trains, its metrics see classes, and the protected model decodes."""
    x, y = separable
    model = ke.protect(own_step, shared_authority, name="own", **OPTIONS)
    model.compile(keras.optimizers.Adam(0.02), LOSS, metrics=["accuracy"])
    history = model.fit(x, y, epochs=25, batch_size=16, verbose=0).history
    assert OwnStep.calls > 0
    assert history["accuracy"][-1] > 0.9
    assert model.evaluate(x, y, verbose=0)[1] > 0.9
    assert (model.decode(model.predict(x, verbose=0)).argmax(1) == y).mean() > 0.9


def test_own_train_step_reads_its_attributes(
    own_step: OwnStep, separable: Any, shared_authority: ke.Authority
) -> None:
    """A factor of 0 for the gradients, set on the object, means that no weight moves."""
    own_step.factor = 0.0
    model = ke.protect(own_step, shared_authority, name="own", homophones=2, trace_labels=0)
    model.compile(keras.optimizers.SGD(0.5), LOSS, metrics=["accuracy"])
    before = [ops.convert_to_numpy(v) for v in model.trainable_variables]
    history = model.fit(*separable, verbose=0).history
    assert OwnStep.calls > 0
    for variable, old in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), old)
    assert 0 <= history["accuracy"][0] <= 1


def test_own_train_step_reports_plain_accuracy(
    own_step: OwnStep, separable: Any, shared_authority: ke.Authority
) -> None:
    """With the learning rate 0 and no dropout, `fit` reports what `evaluate` does."""
    own_step.dropout.rate = 0.0
    own_step.norm.trainable = False
    randomise(own_step)
    own_step.compile(keras.optimizers.SGD(0.0), LOSS, metrics=["accuracy"])
    expected = own_step.evaluate(*separable, verbose=0)[1]
    model = ke.protect(own_step, shared_authority, name="own", **OPTIONS, teacher=False)
    model.compile(keras.optimizers.SGD(0.0), LOSS, metrics=["accuracy"])
    history = model.fit(*separable, batch_size=32, verbose=0).history
    assert history["accuracy"][0] == pytest.approx(expected)


class CountsTests(OwnStep):
    tests = 0

    def test_step(self, data: Any) -> dict[str, Any]:
        CountsTests.tests += 1
        x, y = data
        y_pred = self(x, training=False)
        self.compute_loss(y=y, y_pred=y_pred)
        for metric in self.metrics:
            if metric.name != "loss":
                metric.update_state(y, y_pred)
        return {metric.name: metric.result() for metric in self.metrics}


def test_own_test_step_is_called(separable: Any, shared_authority: ke.Authority) -> None:
    keras.utils.set_random_seed(7)
    classifier = CountsTests("layer")
    classifier(IMAGES[:1])
    randomise(classifier)
    x, y = separable
    expected = (class_probabilities(classifier, x).argmax(1) == y).mean()
    model = ke.protect(classifier, shared_authority, name="own", **OPTIONS)
    model.compile("sgd", LOSS, metrics=["accuracy"])
    CountsTests.tests = 0
    result = model.evaluate(x, y, verbose=0, return_dict=True)
    assert CountsTests.tests > 0
    assert result["accuracy"] == pytest.approx(expected)


# --- loops that see confused labels --------------------------------------------------------------


def told(loop: Callable[[], Any]) -> str:
    """The text of the error or warning that a loop gets; nothing if it gets none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loop()
        except EncryipError as error:
            return str(error)
    return " ".join(str(w.message) for w in caught if issubclass(w.category, UserWarning))


def test_gradient_tape_is_told(shared_authority: ke.Authority) -> None:
    """`model(x)` gives confused labels: a loss on classes would train the wrong outputs."""
    model = ke.protect(soft(), shared_authority, name="tape", **OPTIONS)

    def keyword_loop() -> None:
        with tf.GradientTape() as tape:
            outputs = model(IMAGES, training=True)
            loss = ops.mean(keras.losses.sparse_categorical_crossentropy(Y, outputs))
        tape.gradient(loss, model.trainable_variables)

    assert "confused" in told(keyword_loop)
    assert "confused" in told(tf.function(keyword_loop))


def test_part_of_another_model_is_told(shared_authority: ke.Authority) -> None:
    model = ke.protect(soft(), shared_authority, name="part", **OPTIONS)
    outer = keras.Sequential([keras.Input((8, 8, 1)), model])
    outer.compile("sgd", LOSS)
    assert "confused" in told(lambda: outer.fit(IMAGES, Y, verbose=0))


def test_fit_predict_and_export_are_quiet(shared_authority: ke.Authority, tmp_path: Path) -> None:
    """What works gets no such warning."""
    model = ke.protect(soft(), shared_authority, name="quiet", **OPTIONS)
    model.compile(keras.optimizers.Adam(0.02), LOSS)

    def work() -> None:
        model.fit(IMAGES, Y, validation_data=(IMAGES, Y), epochs=30, verbose=0)
        model.adapt(IMAGES, Y)
        model.train_on_batch(IMAGES, Y)
        model.predict(IMAGES, verbose=0)
        model(IMAGES)
        model.save(tmp_path / "quiet.keras")
        keras.models.load_model(tmp_path / "quiet.keras").predict(IMAGES, verbose=0)
        ke.export_saved_model(model, tmp_path / "quiet" / "1")

    assert told(work) == ""


# --- weights carry their codebook --------------------------------------------------------------


def codebook_id(model: ke.ProtectedModel) -> str:
    return Codebook.from_bytes(model.codebook.encode("ascii")).codebook_id.hex()


@pytest.fixture
def two_models(shared_authority: ke.Authority) -> Any:
    return [ke.protect(soft(), shared_authority, name="same-name", **OPTIONS) for _ in range(2)]


def test_weights_of_another_codebook(two_models: Any, tmp_path: Path) -> None:
    """As keras-tuner does: rebuilt by `protect`, then `load_weights`. The error names both."""
    first, second = two_models
    randomise(first)
    first.save_weights(tmp_path / "first.weights.h5")
    before = [w.copy() for w in second.get_weights()]
    with pytest.raises(EncryipError, match="codebook") as caught:
        second.load_weights(tmp_path / "first.weights.h5")
    for model in two_models:
        assert codebook_id(model)[:8] in str(caught.value)
    for old, new in zip(before, second.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_weights_of_the_same_codebook(
    two_models: Any, shared_authority: ke.Authority, tmp_path: Path
) -> None:
    model = two_models[0]
    randomise(model)
    expected = decoded(model, IMAGES)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    randomise(model)
    assert np.abs(decoded(model, IMAGES) - expected).max() > 1e-3
    model.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(decoded(model, IMAGES), expected, atol=1e-6)
    loaded = keras.models.load_model(tmp_path / "model.keras").unlock(authority=shared_authority)
    randomise(loaded)
    loaded.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(decoded(loaded, IMAGES), expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning")
def test_weights_of_a_plain_classifier_are_refused(two_models: Any, tmp_path: Path) -> None:
    """They have no codebook, and another head."""
    soft().save_weights(tmp_path / "plain.weights.h5")
    with pytest.raises((EncryipError, ValueError)):
        two_models[0].load_weights(tmp_path / "plain.weights.h5")


@pytest.mark.parametrize("weights_only", [False, True], ids=["model", "weights"])
def test_checkpoints_restore(
    weights_only: bool, shared_authority: ke.Authority, tmp_path: Path
) -> None:
    """Checkpoints, backups, averaged weights and a falling rate, as for any model."""
    model = ke.protect(soft(), shared_authority, name="callbacks", **OPTIONS)
    optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5)
    model.compile(optimizer, LOSS, metrics=["accuracy"])
    file = tmp_path / ("best.weights.h5" if weights_only else "best.keras")
    callbacks = [
        keras.callbacks.ModelCheckpoint(
            file, save_best_only=True, save_weights_only=weights_only, monitor="val_loss"
        ),
        keras.callbacks.BackupAndRestore(tmp_path / "backup"),
        keras.callbacks.ReduceLROnPlateau(patience=1, min_delta=10.0),
        keras.callbacks.SwapEMAWeights(),
    ]
    data = {"validation_data": (IMAGES, Y), "callbacks": callbacks, "verbose": 0}
    history = model.fit(IMAGES, Y, epochs=4, **data).history
    assert history["learning_rate"][-1] < 0.01
    best = min(history["val_loss"])
    if weights_only:
        model.load_weights(file)
    else:
        model = keras.models.load_model(file).unlock(authority=shared_authority)
    assert model.evaluate(IMAGES, Y, verbose=0)[0] == pytest.approx(best, rel=0.05)


def test_scikit_learn_wrapper(separable: Any, shared_authority: ke.Authority) -> None:
    """`predict` gives classes, or says what to do instead."""
    x, y = separable

    def build(X: Any, y: Any) -> ke.ProtectedModel:
        classifier = keras.Sequential(
            [keras.Input((64,)), layers.Dense(8, "relu"), layers.Dense(K, **SOFT)]
        )
        model = ke.protect(classifier, shared_authority, name="sklearn", **OPTIONS)
        model.compile(keras.optimizers.Adam(0.02), "categorical_crossentropy")
        return model

    wrapped = keras.wrappers.SKLearnClassifier(build, fit_kwargs={"epochs": 25, "verbose": 0})
    try:
        wrapped.fit(x.reshape(-1, 64), y)
        found = wrapped.predict(x.reshape(-1, 64))
    except EncryipError as error:
        message = str(error)
    else:
        assert (np.reshape(found, -1) == y).mean() > 0.9
        return
    assert "decode" in message


# --- other processes -------------------------------------------------------------------------


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize(
    "code",
    ["from keras_encryip.models import protect", "import keras_encryip as ke; ke.protect"],
    ids=["module", "lazy"],
)
def test_another_backend_is_refused(code: str) -> None:
    """Once, in one sentence, when the training side is imported."""
    ran = run(code, KERAS_BACKEND="numpy")
    assert ran.returncode != 0
    last = ran.stderr.strip().splitlines()[-1]
    assert "TensorFlow" in last
    assert "numpy" in last


def test_client_works_beside_another_backend() -> None:
    code = "import keras_encryip.client, sys; assert 'tensorflow' not in sys.modules"
    ran = run(code, KERAS_BACKEND="numpy")
    assert ran.returncode == 0, ran.stderr


FIT = """
import sys, numpy as np, tensorflow as tf, keras
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras_encryip as ke
strategy = {strategy}
x, y = np.random.default_rng(0).random((24, 6), dtype="float32"), np.arange(24) % 3
with strategy.scope():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((6,)), keras.layers.Dense(5, "relu"), keras.layers.BatchNormalization()]
    model = keras.Sequential([*layers, keras.layers.Dense(3, activation="softmax")])
    if sys.argv[1:] == ["protected"]:
        with ke.Authority.create("sqlite:///{folder}/own.authority", "p", scrypt_log2_n=14) as a:
            options = dict(homophones=2, trace_labels=8)
            model = ke.protect(model, a, name="strategy", **options)
            model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
            model.fit(x, y, batch_size=8, epochs=2, verbose=0)
            print(model.evaluate(x, y, batch_size=8, verbose=0))
            assert abs(model.decode(model.predict(x, verbose=0)).sum(1) - 1).max() < 1e-5
            model.save("{folder}/model.keras")
            keras.models.load_model("{folder}/model.keras").unlock(authority=a)
    else:
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(x, y, batch_size=8, epochs=2, verbose=0)
        print(model.evaluate(x, y, batch_size=8, verbose=0))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])", id="mirrored"),
        pytest.param("tf.distribute.MultiWorkerMirroredStrategy()", id="multi-worker"),
    ],
)
def test_distribution_strategies(strategy: str, tmp_path: Path) -> None:
    """They fit wherever plain Keras fits."""
    code = FIT.format(strategy=strategy, folder=tmp_path)
    ran = subprocess.run(
        [sys.executable, "-c", code, "protected"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if ran.returncode == 0:
        return
    plain = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert plain.returncode != 0, ran.stderr[-2000:]
