"""What users of Keras expect of a model: logs, callbacks, `summary`, `repr`, `plot_model`."""

import csv
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_encryip as ke
from keras_encryip.errors import ArgumentError, LockedModelError
from keras_encryip.models import terms
from tests.models.classifiers import IMAGES
from tests.models.custom_layers import FunctionalSubclass, K, OwnStep
from tests.randomness import drawn_again

LOSS = "sparse_categorical_crossentropy"
Y = np.random.default_rng(5).integers(0, K, 12)
Make = Callable[..., ke.ProtectedModel]


@pytest.fixture
def make(shared_authority: ke.Authority) -> Make:
    """A compiled model of 3 classes, by default with both terms."""

    def make(
        classifier: keras.Model | None = None,
        authority: ke.Authority = shared_authority,
        **options: Any,
    ) -> ke.ProtectedModel:
        compiling = options.pop("compiling", {})
        keras.utils.set_random_seed(7)
        if classifier is None:
            parts = [layers.Flatten(), layers.Dense(6, "tanh"), layers.Dropout(0.2)]
            head = layers.Dense(K, activation="softmax", kernel_regularizer="l2")
            classifier = keras.Sequential([keras.Input((8, 8, 1)), *parts, head])
        options = {"homophones": 4, "trace_labels": 8, "teacher": True, **options}
        model = ke.protect(classifier, authority, name="habits", **options)
        rate = {"optimizer": keras.optimizers.Adam(0.01), "loss": LOSS, "metrics": ["accuracy"]}
        model.compile(**{**rate, **compiling})
        return model

    return make


@pytest.fixture
def again(make: Make, tmp_path: Path) -> Callable[..., tuple[ke.ProtectedModel, Any]]:
    """A model fitted under an authority of its own: the same draws at each call."""
    ledgers = itertools.count()

    def again(*callbacks: Any, **compiling: Any) -> tuple[ke.ProtectedModel, Any]:
        with drawn_again("the same twice"):
            url = f"sqlite:///{tmp_path}/{next(ledgers)}.authority"
            with ke.Authority.create(url, "pw", scrypt_log2_n=14) as authority:
                model = make(authority=authority, compiling=compiling)
                data = {"batch_size": 3, "epochs": 3, "callbacks": list(callbacks), "verbose": 0}
                return model, model.fit(IMAGES, Y, **data).history

    return again


def still() -> keras.Model:
    """A classifier without dropout, with a penalty."""
    head = layers.Dense(K, activation="softmax", kernel_regularizer="l2")
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), head])


# --- one loss, and the terms apart ---------------------------------------------------

SHOWN = {"loss", "accuracy", "confusion_loss", "teacher_loss"}
WAYS: dict[str, Callable[[], dict[str, Any]]] = {
    "graph": dict,
    "eager": lambda: {"run_eagerly": True},
    "jit": lambda: {"jit_compile": True},
    "steps-per-execution": lambda: {"steps_per_execution": 2},
    "accumulated": lambda: {
        "optimizer": keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)
    },
    "scaled": lambda: {
        "optimizer": keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_training_is_bit_for_bit_that_of_the_sum(
    way: str, again: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the sum itself were the loss that Keras sees: only what is shown differs."""
    sums: list[Any] = []
    model, history = again(**WAYS[way]())
    with monkeypatch.context() as patch:
        patch.setattr(terms, "with_gradient_of", lambda total, loss: sums.append(total) or total)
        of_sum, summed = again(**WAYS[way]())
    assert sums
    assert set(history) == SHOWN
    assert summed["loss"] != history["loss"]
    for one, other in zip(model.get_weights(), of_sum.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_mixed_precision_shows_the_terms(make: Make) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        history = make().fit(IMAGES, Y, epochs=2, verbose=0).history
    finally:
        keras.config.set_dtype_policy("float32")
    assert set(history) == SHOWN
    assert np.isfinite([*history.values()]).all()


def test_loss_is_as_in_validation(make: Make) -> None:
    """Without dropout, and with the learning rate 0, on the same data: penalties included."""
    classifier, rate = still(), {"optimizer": keras.optimizers.SGD(0.0)}
    classifier.compile(**rate, loss=LOSS)
    plain = classifier.evaluate(IMAGES, Y, verbose=0)
    model = make(classifier, compiling=rate)
    history = model.fit(IMAGES, Y, batch_size=4, validation_data=(IMAGES, Y), verbose=0).history
    assert set(history) == SHOWN | {"val_loss", "val_accuracy"}
    assert history["loss"] == pytest.approx(history["val_loss"], rel=1e-5)
    assert history["loss"] == pytest.approx([plain], rel=1e-4)
    assert history["confusion_loss"][0] > 1


def test_terms_are_means_of_one_epoch(make: Make) -> None:
    """Weighted with the batches' rows, and none of an earlier epoch's."""
    model = make(still(), teacher=still(), compiling={"optimizer": keras.optimizers.SGD(0.0)})
    model.adapt(IMAGES, Y)
    parts = (slice(8), slice(8, 12))
    first, second = (
        model.train_on_batch(IMAGES[rows], Y[rows], return_dict=True)["teacher_loss"]
        for rows in parts
    )
    data = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    mean = (8 * first + 4 * second) / 12
    assert abs(first - second) > 1e-3
    assert model.fit(IMAGES, Y, **data).history["teacher_loss"] == pytest.approx(
        [mean, mean], rel=1e-5
    )


@pytest.mark.parametrize("way", ["graph", "eager", "jit", "steps-per-execution"])
def test_a_sum_that_is_no_number_ends_training(way: str, make: Make) -> None:
    """`TerminateOnNaN` looks at the loss, and the confusion term may be what failed."""
    model = make(confusion_weight=3e38, compiling=WAYS[way]())
    callbacks = [keras.callbacks.TerminateOnNaN()]
    history = model.fit(IMAGES, Y, epochs=3, callbacks=callbacks, verbose=0).history
    assert len(history["loss"]) == 1
    assert math.isnan(history["loss"][0])


def test_a_value_with_the_gradient_of_another() -> None:
    x = tf.Variable(1.0)
    with tf.GradientTape() as tape:
        loss = terms.with_gradient_of(total=2 * x, loss=5 * x**2)
    assert (float(loss), float(tape.gradient(loss, x))) == (5, 2)
    for failed in (math.nan, math.inf):
        assert math.isnan(terms.with_gradient_of(total=x * failed, loss=x))


def test_batch_methods_return_what_keras_returns(make: Make) -> None:
    """As many numbers as for any model; the terms are in the dictionary."""
    model = make()
    model.adapt(IMAGES, Y)
    assert len(model.train_on_batch(IMAGES, Y)) == 2
    assert set(model.train_on_batch(IMAGES, Y, return_dict=True)) == SHOWN
    assert len(model.test_on_batch(IMAGES, Y)) == len(model.evaluate(IMAGES, Y, verbose=0)) == 2
    for measured in (model.test_on_batch, model.evaluate):
        assert set(measured(IMAGES, Y, return_dict=True)) == {"loss", "accuracy"}
    model = make(compiling={"metrics": None})
    model.adapt(IMAGES, Y)
    assert np.ndim(model.train_on_batch(IMAGES, Y)) == 0


def test_compiling_again_starts_the_terms_anew(make: Make) -> None:
    model = make(still(), teacher=False)
    model.adapt(IMAGES, Y)
    for _ in range(5):
        model.train_on_batch(IMAGES, Y)
    head = model.confused_labels
    head.kernel.assign(np.zeros(head.kernel.shape))
    head.bias.assign(np.zeros(head.bias.shape))
    model.compile(keras.optimizers.SGD(0.0), LOSS)
    shown = model.train_on_batch(IMAGES, Y, return_dict=True)["confusion_loss"]
    assert shown == pytest.approx(np.log(model.num_labels), rel=1e-5)


def test_own_train_step_shows_the_terms(make: Make) -> None:
    """Its `metrics` are not among them: it updates each with labels and predictions."""
    classifier = OwnStep("layer")
    classifier(IMAGES[:1])
    model = make(classifier)
    OwnStep.calls = 0
    history = model.fit(IMAGES, Y, validation_data=(IMAGES, Y), epochs=2, verbose=0).history
    assert OwnStep.calls > 0
    assert set(history) == SHOWN | {"val_loss", "val_accuracy"}
    assert np.isfinite([*history.values()]).all()
    assert not {metric.name for metric in model.metrics} & set(terms.TERMS)


def test_own_loop_trains_on_the_sum(make: Make) -> None:
    """Outside of Keras's steps, `compute_loss` has the same value and the same gradient."""
    model = make(still(), teacher=False)
    model.adapt(IMAGES, Y)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(IMAGES, Y, model(IMAGES, training=True))
    slope = tape.gradient(loss, model.confused_labels.kernel.value)
    own = model.compute_loss(IMAGES, Y, model(IMAGES, training=False), training=False)
    assert float(loss) == pytest.approx(float(own), rel=1e-5)
    copies = model._unlocked().assignment().labels
    slopes = np.array(slope)[:, copies]
    assert np.ptp(slopes, axis=-1).max() > 1e-4, "homophones that are alike come apart"


def test_saving_and_weights_know_nothing_of_it(make: Make, tmp_path: Path) -> None:
    model = make()
    model.fit(IMAGES, Y, verbose=0)
    assert not [v for v in model.variables if "confusion_loss" in v.path]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.unlock(authority=model._unlocked().owner)
    assert set(loaded.fit(IMAGES, Y, verbose=0).history) == SHOWN - {"teacher_loss"}


def test_callbacks_that_watch_the_loss(make: Make, tmp_path: Path) -> None:
    model = make(teacher=False, compiling={"optimizer": keras.optimizers.Adam(0.05)})
    kept = tmp_path / "best.weights.h5"
    callbacks = [
        keras.callbacks.EarlyStopping("loss", patience=2, min_delta=100.0),
        keras.callbacks.ReduceLROnPlateau(
            "confusion_loss", patience=1, min_delta=100.0, mode="min"
        ),
        keras.callbacks.ModelCheckpoint(
            kept, monitor="loss", save_best_only=True, save_weights_only=True
        ),
        keras.callbacks.TerminateOnNaN(),
    ]
    history = model.fit(IMAGES, Y, epochs=9, callbacks=callbacks, verbose=0).history
    assert len(history["loss"]) == 3
    assert history["learning_rate"][-1] < 0.05
    assert kept.exists()


# --- how well it is protected ----------------------------------------------------------


def test_measures_are_in_the_logs(make: Make, tmp_path: Path) -> None:
    """Of the history, and of callbacks that come later."""
    model, later = make(), []
    callbacks = [
        ke.ProtectionMetrics(),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: later.append(logs)),
    ]
    history = model.fit(IMAGES, Y, epochs=2, callbacks=callbacks, verbose=0).history
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    for name in ("confusion", "trace_labels_read"):
        assert len(history[name]) == 2
        assert all(0 <= value <= 1 for value in history[name])
        assert [float(row[name]) for row in rows] == pytest.approx(history[name])
        assert [logs[name] for logs in later] == history[name]


def test_training_goes_on_as_without_measures(again: Any) -> None:
    measured, plain = again(ke.ProtectionMetrics())[0], again()[0]
    for one, other in zip(measured.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_measures_of_a_trained_model(shipped: Any, digits: Any) -> None:
    measured = ke.ProtectionMetrics().measure(shipped.model)
    assert measured["trace_labels_read"] == 1
    assert 0.3 < measured["confusion"] < 1
    labels = shipped.model._unlocked().assignment().labels
    confused = shipped.model.predict(digits.x_test, verbose=0)[:, labels].sum(-1).argmax(1)
    assert set(confused) == set(range(10))
    on_others = ke.ProtectionMetrics(inputs=digits.x_test).measure(shipped.model)["confusion"]
    assert on_others == pytest.approx(measured["confusion"], abs=0.15)


def test_measures_of_a_fresh_model(make: Make) -> None:
    """All homophones are copies, so that one of each class is answered throughout."""
    model = make()
    model.adapt(IMAGES, Y)
    measured = ke.ProtectionMetrics().measure(model)
    assert measured["confusion"] == 0
    assert measured["trace_labels_read"] < 0.9


def test_what_is_measured_without_traces_or_homophones(make: Make) -> None:
    model = make(trace_labels=0)
    with pytest.raises(LockedModelError, match=r"call `adapt\(x, y\)`"):
        ke.ProtectionMetrics().measure(model)
    model.fit(IMAGES, Y, verbose=0)
    with pytest.raises(ArgumentError, match=r"no trace labels.*`ProtectionMetrics\(inputs=x"):
        ke.ProtectionMetrics().measure(model)
    assert set(ke.ProtectionMetrics(IMAGES).measure(model)) == {"confusion"}
    single = make(homophones=1)
    single.fit(IMAGES, Y, verbose=0)
    assert set(ke.ProtectionMetrics().measure(single)) == {"trace_labels_read"}


def test_what_cannot_be_measured_is_said_before_training(make: Make, shipped: Any) -> None:
    for wrong in (5, "x", [1.0, 2.0], np.float32(1), [IMAGES, 3], [], IMAGES[:0]):
        with pytest.raises(ArgumentError, match=r"`inputs` must be an array \[n, …\]"):
            ke.ProtectionMetrics(wrong)
    model = make(trace_labels=0)
    before = model.get_weights()
    with pytest.raises(ArgumentError, match="no trace labels"):
        model.fit(IMAGES, Y, callbacks=[ke.ProtectionMetrics()], verbose=0)
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    plain = still()
    plain.compile("sgd", LOSS)
    with pytest.raises(ArgumentError, match="Received: a model of class Sequential"):
        plain.fit(IMAGES, Y, callbacks=[ke.ProtectionMetrics()], verbose=0)


def test_what_is_no_number_has_no_measure(shipped: Any, digits: Any) -> None:
    model = shipped.copy()
    x = digits.x_test[:40].copy()
    x[33] = np.nan
    assert math.isnan(ke.ProtectionMetrics(x).measure(model)["confusion"])
    model.confused_labels.kernel.assign(np.full(model.confused_labels.kernel.shape, np.nan))
    assert math.isnan(ke.ProtectionMetrics().measure(model)["confusion"])


def test_who_may_measure(shipped: Any) -> None:
    with pytest.raises(ArgumentError, match="Received: a model of class Sequential"):
        ke.ProtectionMetrics().measure(keras.Sequential())
    locked = shipped.copy(unlock=False)
    with pytest.raises(LockedModelError, match="is locked"):
        ke.ProtectionMetrics().measure(locked)
    locked.unlock(bundle=shipped.bundles["alice"], passphrase=shipped.passphrase)
    with pytest.raises(LockedModelError, match="needs its owner"):
        ke.ProtectionMetrics().measure(locked)


# --- summary, repr, plot -----------------------------------------------------------------

OPEN = "{n} confused labels for 3 classes, 4 homophones per class ({strategy}), 8 trace labels"


def printed(model: ke.ProtectedModel, *args: Any, **options: Any) -> list[str]:
    parts: list[str] = []
    model.summary(*args, print_fn=parts.append, **options)
    return parts


def test_summary_is_keras_s_and_a_block(make: Make) -> None:
    model = make()
    tables: list[str] = []
    keras.Model.summary(model, 70, print_fn=tables.append, expand_nested=True)
    table, block = printed(model, 70, expand_nested=True)
    assert [table] == tables
    assert "flatten" in table
    words = OPEN.format(n=20, strategy="automatic")
    assert " ".join(block.split()) == f'Protected as "habits": {words}, unlocked by its owner'
    assert max(map(len, block.splitlines())) <= 70
    assert len(block.splitlines()) == 2


def test_summary_is_printed(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make().summary()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'Model: "habits"'
    assert lines[-1].endswith("unlocked by its owner")


def test_repr_is_of_the_same_facts(make: Make) -> None:
    """And of no more when it is locked than its codebook tells."""
    model = make()
    model.fit(IMAGES, Y, verbose=0)
    words = OPEN.format(n=20, strategy="clustered") + ", unlocked by its owner"
    assert repr(model) == f"<ProtectedModel name=habits, built=True, {words}>"
    assert str(model) == repr(model)
    model.lock()
    words = "20 confused labels for 3 classes, locked"
    assert repr(model) == f"<ProtectedModel name=habits, built=True, {words}>"
    assert printed(model)[1] == f' Protected as "habits": {words}'


def test_a_user_s_summary(shipped: Any) -> None:
    """A user does not know the trace labels, nor how many there are."""
    model = shipped.copy(unlock=False)
    model.unlock(bundle=shipped.bundles["alice"], passphrase=shipped.passphrase)
    words = "104 confused labels for 10 classes, unlocked with a key bundle"
    assert words in repr(model)
    assert words in " ".join(printed(model)[1].split())


class OwnGraphStep(FunctionalSubclass):
    """A graph with a `train_step` of its own: the protected model is a `Functional`, too."""

    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


def own_step() -> keras.Model:
    classifier = OwnStep("layer")
    classifier(IMAGES[:1])
    return classifier


@pytest.mark.parametrize("kind", [FunctionalSubclass, OwnGraphStep, own_step])
def test_the_classifier_s_head_is_not_shown(kind: Any, make: Make) -> None:
    model = make(kind())
    table, _ = printed(model)
    assert "ConfusedLabels" in table.replace("\n", "")
    assert "dense" not in table.lower()
    dot = keras.utils.model_to_dot(model, show_shapes=True).to_string()
    assert "dense" not in dot.lower()


def test_plots(make: Make) -> None:
    """One node, as of every subclassed model; and all layers of what it is built on."""
    model = make()
    options = {"show_shapes": True, "show_dtype": True, "show_trainable": True}
    dot = keras.utils.model_to_dot(model, **options, expand_nested=True).to_string()
    assert "habits" in dot
    assert "Softmax" not in dot
    parts = keras.utils.model_to_dot(model.backbone, **options).to_string()
    assert all(name in parts for name in ("Flatten", "Dense", "Dropout"))
