"""What training adds to stock Keras: nothing when switched off, and the documented terms."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_encryip as ke
from keras_encryip.models import terms
from keras_encryip.models.losses import Distillation

layers = keras.layers
ROWS, STEPS = 96, 4
BATCH = ROWS // STEPS


def network() -> keras.Model:
    """No bias before BatchNormalization: without a gradient, Adam would follow rounding errors."""
    keras.utils.set_random_seed(7)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, use_bias=False, kernel_regularizer=keras.regularizers.L2(1e-3)),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(12, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


@pytest.mark.parametrize(
    "optimizer",
    [lambda: keras.optimizers.SGD(0.1, momentum=0.9), lambda: keras.optimizers.Adam(0.01)],
    ids=["SGD", "Adam"],
)
def test_switched_off_equals_stock_keras(
    optimizer: Callable[[], Any], digits: Any, shared_authority: ke.Authority
) -> None:
    """One homophone, no traces, no extra terms: the same training up to the permutation."""
    off = {"homophones": 1, "trace_labels": 0, "confusion_weight": 0.0, "teacher": False}
    stock, twin = network(), network()
    model = ke.protect(twin, shared_authority, name="off", **off)
    x, y = digits.x[:ROWS], digits.y[:ROWS]
    weights = np.random.default_rng(0).uniform(0.5, 2, ROWS).astype("float32")
    histories = []
    for trained in (stock, model):
        trained.compile(optimizer(), "sparse_categorical_crossentropy", metrics=["accuracy"])
        fitted = trained.fit(
            x, y, sample_weight=weights, batch_size=BATCH, epochs=3, shuffle=False, verbose=0
        )
        histories.append(fitted.history)
    assert histories[0]["loss"][2] < histories[0]["loss"][0] - 0.1
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-4, err_msg=name)
    expected = stock.predict(x, verbose=0)
    np.testing.assert_allclose(model.decode(model.predict(x, verbose=0)), expected, atol=1e-4)
    order = model._unlocked().assignment().labels[:, 0]
    assert sorted(order) == list(range(10))
    head, dense = model.confused_labels, stock.layers[-1]
    kernels = [keras.ops.convert_to_numpy(k) for k in (head.kernel, dense.kernel)]
    np.testing.assert_allclose(kernels[0][:, order], kernels[1], atol=1e-3)
    biases = [keras.ops.convert_to_numpy(b) for b in (head.bias, dense.bias)]
    np.testing.assert_allclose(biases[0][order], biases[1], atol=1e-3)


def flat(model: ke.ProtectedModel) -> None:
    """All N confused labels equally probable, whatever the input."""
    head = model.confused_labels
    head.kernel.assign(np.zeros(head.kernel.shape))
    head.bias.assign(np.zeros(head.bias.shape))


def first_logs(model: ke.ProtectedModel, digits: Any) -> dict[str, float]:
    """What the first epoch shows, of a model that stays as it is."""
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    history = model.fit(digits.x[:ROWS], digits.y[:ROWS], batch_size=BATCH, verbose=0).history
    return {name: values[0] for name, values in history.items()}


LOG_K, LOG_N = np.log(10), np.log(48)


# Own loss log K: each class has 4 of 48 labels, and a tenth of the 8 trace labels.
CONFUSION = {"confusion_loss": LOG_N}
TEACHER = {"teacher_loss": 0.0}
TERMS = {
    "defaults": ({}, CONFUSION),
    "no-confusion": ({"confusion_weight": 0.0}, {}),
    "confusion-3": ({"confusion_weight": 3.0}, CONFUSION),
    "teacher": ({"teacher": True}, CONFUSION | TEACHER),
    "teacher-alone": ({"teacher": True, "confusion_weight": 0.0}, TEACHER),
    "one-homophone": ({"homophones": 1, "trace_labels": 0}, {}),
}


@pytest.mark.parametrize(("options", "expected"), TERMS.values(), ids=TERMS)
def test_the_loss_is_the_own_one_and_terms_are_shown_apart(
    options: dict[str, Any],
    expected: dict[str, float],
    new_classifier: Any,
    digits: Any,
    shared_authority: ke.Authority,
) -> None:
    """Before their weights. A teacher with zero weights agrees with flat outputs."""
    options = {"homophones": 4, "trace_labels": 8, **options}
    classifier = new_classifier(kernel_initializer="zeros")
    model = ke.protect(classifier, shared_authority, name="terms", **options)
    flat(model)
    logs = first_logs(model, digits)
    assert logs == pytest.approx({"loss": LOG_K, **expected}, rel=1e-5, abs=1e-6)


SUMS = {
    "defaults": ({}, LOG_K + 0.1 * LOG_N),
    "no-confusion": ({"confusion_weight": 0.0}, LOG_K),
    "confusion-3": ({"confusion_weight": 3.0}, LOG_K + 3 * LOG_N),
    "teacher-agrees-weight-1": ({"teacher": True, "teacher_weight": 1.0}, 0.1 * LOG_N),
    "teacher-0.25": ({"teacher": True, "teacher_weight": 0.25}, 0.75 * LOG_K + 0.1 * LOG_N),
}


@pytest.mark.parametrize(("options", "expected"), SUMS.values(), ids=SUMS)
def test_terms_of_the_sum(
    options: dict[str, Any],
    expected: float,
    new_classifier: Any,
    digits: Any,
    shared_authority: ke.Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the gradient is of. A teacher with zero weights agrees; trace labels add nothing."""
    monkeypatch.setattr(terms, "with_gradient_of", lambda total, loss: total)
    options = {"homophones": 4, "trace_labels": 8, **options}
    classifier = new_classifier(kernel_initializer="zeros")
    model = ke.protect(classifier, shared_authority, name="terms", **options)
    assert model.num_labels == 48
    flat(model)
    assert first_logs(model, digits)["loss"] == pytest.approx(expected, rel=1e-5)


def step_by(model: ke.ProtectedModel, x: Any, y: Any) -> list[np.ndarray]:
    """How one step of SGD with the learning rate 1 moves the weights."""
    model.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy")
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    model.train_on_batch(x, y)
    after = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    return [b - a for b, a in zip(before, after, strict=True)]


@pytest.mark.parametrize("teacher_weight", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("confusion_weight", [0.0, 3.0])
def test_the_step_is_that_of_the_weighted_sum(
    teacher_weight: float, confusion_weight: float, digits: Any, shared_authority: ke.Authority
) -> None:
    """Penalties count in full, whatever the teacher's weight: 0.01 for each weight of the kernel.

    The sum is (1 − κ)·own loss + penalties + κ·distillation + confusion.
    """
    classifier = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(
                10, kernel_initializer="ones", kernel_regularizer=keras.regularizers.L1(0.01)
            ),
            layers.Dense(10),
        ]
    )
    model = ke.protect(
        classifier, shared_authority, name="terms", homophones=4, trace_labels=8, teacher=True,
        teacher_weight=teacher_weight, confusion_weight=confusion_weight,
    )  # fmt: skip
    x, y = digits.x[:BATCH], digits.y[:BATCH]
    model.adapt(x, y)
    random = np.random.default_rng(0).normal(0, 0.1, model.confused_labels.kernel.shape)
    model.confused_labels.kernel.assign(random)
    secrets, seed = model._unlocked(), model._seed_generator.state.numpy()
    with tf.GradientTape() as tape:
        scores = model.confused_labels.logits(model.backbone(x, training=True))
        decoded = keras.ops.softmax(secrets.class_scores(scores))
        data_loss = keras.losses.SparseCategoricalCrossentropy()(y, decoded)
        taught = Distillation(2.0)(secrets.teacher.probabilities(x), decoded)
        targets = secrets.targets(x, keras.ops.cast(y, "int32"), model._seed_generator)
        confusion = ke.ConfusedLabelCrossentropy()(targets, scores)
        total = (
            (1 - teacher_weight) * data_loss + sum(model.losses)
            + teacher_weight * taught + confusion_weight * confusion
        )  # fmt: skip
    expected = tape.gradient(total, [v.value for v in model.trainable_variables])
    model._seed_generator.state.assign(seed)
    for step, slope in zip(step_by(model, x, y), expected, strict=True):
        np.testing.assert_allclose(step, slope, atol=2e-5)


def test_distillation_pulls_towards_the_teacher(
    trained_classifier: keras.Model,
    new_classifier: Any,
    digits: Any,
    shared_authority: ke.Authority,
) -> None:
    """Taught by the teacher alone, on wrong labels, the model answers as the teacher."""
    options = {"homophones": 2, "trace_labels": 0, "teacher_weight": 1.0, "confusion_weight": 0.0}
    model = ke.protect(
        new_classifier(1), shared_authority, name="pupil", teacher=trained_classifier, **options
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    wrong = (digits.y + 1) % 10
    model.fit(digits.x, wrong, epochs=4, batch_size=64, verbose=0)
    answers = model.decode(model.predict(digits.x_test, verbose=0)).argmax(1)
    assert (answers == digits.y_test).mean() > 0.8


def test_confusion_term_fills_all_homophones(shipped: Any, digits: Any) -> None:
    """Every class comes out under several of its 4 homophones as the most probable label."""
    labels = shipped.model.predict(digits.x, verbose=0).argmax(1)
    for k, homophones in enumerate(shipped.model._unlocked().assignment().labels):
        used = np.intersect1d(homophones, labels[digits.y == k])
        assert len(used) >= 2, k


REPLICAS = """
import json, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, numpy as np
import keras_encryip as ke
from keras_encryip.models import terms

x, y = (np.load(sys.argv[1])[name] for name in "xy")
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
results = {"replicas": strategy.num_replicas_in_sync}
authority = ke.Authority.create(f"sqlite:///{sys.argv[2]}", "pw", scrypt_log2_n=14)
with strategy.scope():
    l2 = keras.regularizers.L1(0.01)
    classifier = keras.Sequential([
        keras.Input((8, 8, 1)), keras.layers.Flatten(),
        keras.layers.Dense(10, kernel_initializer="ones", kernel_regularizer=l2),
        keras.layers.Dense(10, kernel_initializer="zeros"),
    ])
    model = ke.protect(
        classifier, authority, name="m", homophones=4, trace_labels=8, teacher=True,
        teacher_weight=0.5,
    )
    head = model.confused_labels
    head.kernel.assign(np.zeros(head.kernel.shape))
    head.bias.assign(np.zeros(head.bias.shape))
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    history = model.fit(x, y, batch_size=24, verbose=0).history
    results["first"] = {name: values[0] for name, values in history.items()}
    shown, terms.with_gradient_of = terms.with_gradient_of, lambda total, loss: total
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    results["sum"] = model.fit(x, y, batch_size=24, verbose=0).history["loss"][0]
    terms.with_gradient_of = shown
    adam = keras.optimizers.Adam(0.01)
    model.compile(adam, "sparse_categorical_crossentropy", metrics=["accuracy"])
data = tf.data.Dataset.from_tensor_slices((x, y)).batch(20)
results["losses"] = model.fit(data, epochs=8, shuffle=False, verbose=0).history["loss"]
results["evaluated"] = model.evaluate(data, verbose=0, return_dict=True)
decoded = model.decode(np.asarray(model(x, training=False)))
loss = -np.log(decoded[np.arange(len(y)), y]).mean()
kernel = np.asarray(model.backbone.layers[2].kernel)
results["loss"] = float(loss + 0.01 * np.abs(kernel).sum())
results["accuracy"] = float((decoded.argmax(1) == y).mean())
print(json.dumps(results))
"""


@pytest.mark.slow
def test_two_replicas(digits: Any, tmp_path: Path) -> None:
    """MirroredStrategy: the loss is that of one device, each term counted once."""
    np.savez(tmp_path / "data.npz", x=digits.x[:ROWS], y=digits.y[:ROWS])
    finished = subprocess.run(
        [sys.executable, "-c", REPLICAS, tmp_path / "data.npz", tmp_path / "a.authority"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert finished.returncode == 0, finished.stderr
    results = json.loads(finished.stdout)
    assert results["replicas"] == 2
    expected = {"loss": LOG_K + 6.4, "confusion_loss": LOG_N, "teacher_loss": 0}
    assert results["first"] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    expected = 0.5 * LOG_K + 0.1 * LOG_N + 6.4
    assert results["sum"] == pytest.approx(expected, rel=1e-5)
    assert results["losses"][-1] < results["losses"][0]
    assert results["evaluated"]["accuracy"] == pytest.approx(results["accuracy"])
    assert results["evaluated"]["loss"] == pytest.approx(results["loss"], rel=1e-5)
