"""`ProtectedModel`: fit and evaluate as on any Keras model, on decoded probabilities."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_encryip as ke
from keras_encryip.errors import ArgumentError, LockedModelError
from keras_encryip.models import protected_model as models_module

layers = keras.layers
ROWS, BATCH = 133, 32  # the last batch has 5 rows


@pytest.fixture
def small(digits: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, labels, and sample weights between 0.5 and 2."""
    weights = np.random.default_rng(0).uniform(0.5, 2, ROWS).astype("float32")
    return digits.x[:ROWS], digits.y[:ROWS], weights


@pytest.fixture
def make(new_classifier: Any, shared_authority: ke.Authority) -> Callable[..., ke.ProtectedModel]:
    """A compiled protected model with K = 10, h = 4, T = 8: N = 48."""

    def make(
        classifier: keras.Model | None = None,
        *,
        loss: Any = "sparse_categorical_crossentropy",
        optimizer: Any = None,
        compiling: dict[str, Any] | None = None,
        **options: Any,
    ) -> ke.ProtectedModel:
        options = {"homophones": 4, "trace_labels": 8, "name": "digits", **options}
        model = ke.protect(classifier or new_classifier(), shared_authority, **options)
        model.compile(
            optimizer or keras.optimizers.Adam(0.01),
            loss,
            metrics=["accuracy"],
            **(compiling or {}),
        )
        return model

    return make


class Batches(keras.utils.PyDataset):
    """A PyDataset with sample weights."""

    def __init__(self, *arrays: np.ndarray) -> None:
        super().__init__()
        self.arrays = arrays

    def __len__(self) -> int:
        return -(-len(self.arrays[0]) // BATCH)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        return tuple(a[index * BATCH : (index + 1) * BATCH] for a in self.arrays)


def as_dataset(*arrays: np.ndarray) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(arrays).batch(BATCH)


def close(result: dict[str, float], expected: dict[str, float], prefix: str = "") -> None:
    for name, value in result.items():
        if name.startswith(prefix):
            wanted = expected[name.removeprefix(prefix)]
            assert value == pytest.approx(wanted, rel=1e-5, abs=1e-6), name


@pytest.fixture(scope="module")
def any_model(new_classifier: Any, shared_authority: ke.Authority) -> ke.ProtectedModel:
    """One model for all forms of data: what is checked holds whatever it has learned."""
    options = {"homophones": 4, "trace_labels": 8}
    model = ke.protect(new_classifier(), shared_authority, name="digits", **options)
    model.compile(
        keras.optimizers.Adam(0.01),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="weighted_accuracy")],
    )
    return model


# Each: (x, y, weights) → what fit and evaluate get, whether the weights are among it.
FORMS: dict[str, Callable[..., tuple[dict[str, Any], bool]]] = {
    "numpy": lambda x, y, w: ({"x": x, "y": y}, False),
    "float64": lambda x, y, w: ({"x": x.astype("float64"), "y": y.astype("float64")}, False),
    "sample-weight": lambda x, y, w: ({"x": x, "y": y, "sample_weight": w}, True),
    "tensors": lambda x, y, w: ({"x": tf.constant(x), "y": tf.constant(y)}, False),
    "tf.data-2": lambda x, y, w: ({"x": as_dataset(x, y)}, False),
    "tf.data-3": lambda x, y, w: ({"x": as_dataset(x, y, w)}, True),
    "PyDataset": lambda x, y, w: ({"x": Batches(x, y)}, False),
    "PyDataset-weights": lambda x, y, w: ({"x": Batches(x, y, w)}, True),
}
NAMES = {"loss", "accuracy", "weighted_accuracy"}
TRAINING = NAMES | {"confusion_loss"}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_data(form: str, any_model: ke.ProtectedModel, small: Any, by_hand: Any) -> None:
    data, weighted = FORMS[form](*small)
    steps = int(any_model.optimizer.iterations) if any_model.optimizer.built else 0
    history = any_model.fit(**data, epochs=2, shuffle=False, verbose=0).history
    assert set(history) == TRAINING
    assert history["loss"][1] != history["loss"][0]
    assert int(any_model.optimizer.iterations) == steps + 10  # 2 · ⌈133 / 32⌉
    result = any_model.evaluate(**data, verbose=0, return_dict=True)
    assert set(result) == NAMES
    close(result, by_hand(any_model, small[0], small[1], small[2] if weighted else None))


@pytest.mark.parametrize("form", ["numpy", "tf.data"])
def test_validation_data(
    form: str, any_model: ke.ProtectedModel, small: Any, digits: Any, by_hand: Any
) -> None:
    held_out = (digits.x_test[:70], digits.y_test[:70])
    data = held_out if form == "numpy" else as_dataset(*held_out)
    expected: dict[str, float] = {}  # before the trace labels are learned
    compare = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: expected.update(by_hand(any_model, *held_out))
    )
    history = any_model.fit(
        *small[:2], validation_data=data, callbacks=[compare], verbose=0
    ).history
    assert set(history) == TRAINING | {f"val_{name}" for name in NAMES}
    close({name: values[-1] for name, values in history.items()}, expected, "val_")


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "categorical_crossentropy"])
def test_labels_of_two_axes(loss: str, make: Any, small: Any, by_hand: Any) -> None:
    """A column of classes, or one-hot rows."""
    x, y, _ = small
    labels = y[:, None] if loss.startswith("sparse") else keras.utils.to_categorical(y, 10)
    model = make(loss=loss)
    model.fit(x, labels, batch_size=BATCH, verbose=0)
    close(model.evaluate(x, labels, verbose=0, return_dict=True), by_hand(model, x, y))


def test_validation_split_is_not_looked_at_before(
    make: Any, small: Any, by_hand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, _ = small
    seen: list[int] = []

    def learn(inputs: Any, labels: Any, **options: Any) -> Any:
        seen.extend((len(inputs), len(labels)))
        return original(inputs, labels, **options)

    original = models_module.fit_training_state
    monkeypatch.setattr(models_module, "fit_training_state", learn)
    model = make(trace_labels=0)
    history = model.fit(x, y, validation_split=0.25, epochs=1, verbose=0).history
    assert seen == [99, 99]  # int(133 · 0.75)
    close({k: v[-1] for k, v in history.items()}, by_hand(model, x[99:], y[99:]), "val_")


def test_class_weight(make: Any, small: Any) -> None:
    """Classes of weight 0 are not learned, the others are."""
    x, y, _ = small
    model = make(confusion_weight=0.0)
    weight = {k: float(k < 5) for k in range(10)}
    model.fit(x, y, class_weight=weight, epochs=20, batch_size=BATCH, verbose=0)
    hits = model.decode(model.predict(x, verbose=0)).argmax(1) == y
    assert hits[y < 5].mean() > 0.9
    assert hits[y >= 5].mean() < 0.1


@pytest.mark.parametrize(
    "compiling",
    [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 3}],
    ids=lambda c: next(iter(c)),
)
def test_ways_of_running(compiling: dict[str, Any], make: Any, small: Any, by_hand: Any) -> None:
    x, y, _ = small
    model = make(compiling=compiling)
    model.fit(x, y, batch_size=BATCH, verbose=0)
    close(model.evaluate(x, y, verbose=0, return_dict=True), by_hand(model, x, y))


def test_batch_normalization(make: Any, small: Any, by_hand: Any) -> None:
    x, y, _ = small
    classifier = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, use_bias=False),
            layers.BatchNormalization(momentum=0.5),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model = make(classifier)
    model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0)
    moving = model.backbone.get_layer(index=2).moving_mean
    assert np.abs(keras.ops.convert_to_numpy(moving)).min() > 1e-4
    close(model.evaluate(x, y, verbose=0, return_dict=True), by_hand(model, x, y))


@pytest.fixture
def mixed_float16() -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.usefixtures("mixed_float16")
def test_mixed_precision(make: Any, small: Any, by_hand: Any) -> None:
    x, y, _ = small
    model = make()
    model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0)
    confused = model.predict(x, verbose=0)
    assert confused.dtype == np.float32
    assert model.backbone(x[:1]).dtype == "float16"
    np.testing.assert_allclose(confused.sum(1), 1, atol=1e-6)  # float16 would be off by 1e-3
    close(model.evaluate(x, y, verbose=0, return_dict=True), by_hand(model, x, y))


def test_callbacks_keep_the_best(
    make: Any, small: Any, digits: Any, tmp_path: Path, shared_authority: ke.Authority
) -> None:
    """The third epoch's learning rate ruins the model; what is kept is from before."""
    x, y, _ = small
    held_out = (digits.x_test[:70], digits.y_test[:70])
    model = make(trace_labels=0)  # which are learned afterwards
    file = tmp_path / "best.keras"
    history = model.fit(
        x,
        y,
        validation_data=held_out,
        epochs=4,
        verbose=0,
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda epoch: [0.01, 0.01, 5.0, 0.0][epoch]),
            keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True),
            keras.callbacks.ModelCheckpoint(file, save_best_only=True),
        ],
    ).history
    best = min(history["val_loss"])
    assert history["val_loss"].index(best) == 1
    assert model.evaluate(*held_out, verbose=0)[0] == pytest.approx(best, rel=1e-5)
    kept = keras.models.load_model(file).unlock(authority=shared_authority)
    assert kept.evaluate(*held_out, verbose=0)[0] == pytest.approx(best, rel=1e-5)


def test_batch_methods(make: Any, small: Any, by_hand: Any) -> None:
    x, y, _ = small
    model = make()
    with pytest.raises(ArgumentError, match=r"Call `adapt\(x, y\)` on a sample before"):
        model.train_on_batch(x, y)
    model.adapt(x, y)
    first = model.train_on_batch(x, y, return_dict=True)
    last = [model.train_on_batch(x, y, return_dict=True) for _ in range(5)][-1]
    assert last["loss"] < first["loss"]
    close(model.test_on_batch(x, y, return_dict=True), by_hand(model, x, y))


def test_dictionary_inputs(make: Any, small: Any, by_hand: Any) -> None:
    x, y, _ = small
    inputs = {"image": keras.Input((8, 8, 1), name="image"), "mean": keras.Input((1,), name="mean")}
    joined = layers.Concatenate()([layers.Flatten()(inputs["image"]), inputs["mean"]])
    classifier = keras.Model(inputs, layers.Dense(10)(joined))
    model = make(classifier, strategy="random", trace_labels=0)
    feed = {"image": x, "mean": x.mean((1, 2))}
    history = model.fit(feed, y, epochs=3, batch_size=BATCH, verbose=0).history
    assert history["loss"][2] < history["loss"][0]
    close(model.evaluate(feed, y, verbose=0, return_dict=True), by_hand(model, feed, y))


def test_token_ids(make: Any, by_hand: Any) -> None:
    """Classes are told by the first token."""
    tokens = np.random.default_rng(0).integers(0, 10, (ROWS, 6)).astype("int32")
    classifier = keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(10, 8),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model = make(classifier, strategy="random", trace_labels=0)
    model.fit(tokens, tokens[:, 0], epochs=25, batch_size=BATCH, verbose=0)
    result = model.evaluate(tokens, tokens[:, 0], verbose=0, return_dict=True)
    assert result["accuracy"] > 0.9
    close(result, by_hand(model, tokens, tokens[:, 0]))


def test_sequence_labelling(make: Any, by_hand: Any) -> None:
    """One label for each of 7 tokens: the token modulo 10."""
    tokens = np.random.default_rng(0).integers(0, 20, (ROWS, 7)).astype("int32")
    classifier = keras.Sequential(
        [keras.Input((7,), dtype="int32"), layers.Embedding(20, 8), layers.Dense(10)]
    )
    model = make(classifier, strategy="random", trace_labels=0)
    model.fit(tokens, tokens % 10, epochs=15, batch_size=BATCH, verbose=0)
    assert model.predict(tokens, verbose=0).shape == (ROWS, 7, 40)
    result = model.evaluate(tokens, tokens % 10, verbose=0, return_dict=True)
    assert result["accuracy"] > 0.9
    close(result, by_hand(model, tokens, tokens % 10))


# --- what is learned -----------------------------------------------------------------


def test_clustered_homophones_learn_digits_and_traces(shipped: Any, digits: Any) -> None:
    model = shipped.model
    assert model.evaluate(digits.x_test, digits.y_test, verbose=0)[1] > 0.9
    assert hits(model) == 1  # 26 of 26 trainings; margins of 2.6 … 4.6 between the logits


def test_random_homophones_learn_digits_and_traces(make: Any, digits: Any) -> None:
    model = make(strategy="random")
    model.fit(digits.x, digits.y, epochs=8, batch_size=64, verbose=0)
    assert model.evaluate(digits.x_test, digits.y_test, verbose=0)[1] > 0.9
    assert hits(model) > 0.8


def test_trained_classifier_teaches_itself(
    trained_classifier: keras.Model, make: Any, digits: Any
) -> None:
    model = make(trained_classifier)
    before = trained_classifier.evaluate(digits.x_test, digits.y_test, verbose=0)[1]
    assert model.evaluate(digits.x_test, digits.y_test, verbose=0)[1] == pytest.approx(before)
    model.fit(digits.x, digits.y, epochs=5, batch_size=64, verbose=0)
    assert model.evaluate(digits.x_test, digits.y_test, verbose=0)[1] > before - 0.02
    kernel = keras.ops.convert_to_numpy(model.confused_labels.kernel)
    assert len(np.unique(kernel.T, axis=0)) == 48  # no copies any more


# --- adapt and unlock ----------------------------------------------------------------


def hits(model: ke.ProtectedModel) -> float:
    traces = model._unlocked().training.traces
    answers = model.predict(traces.inputs, verbose=0).argmax(1)
    return float((answers == traces.labels).mean())


def test_adapt_after_fit_takes_effect(make: Any, small: Any) -> None:
    """The trained function held the old trace inputs; new ones must be learned too."""
    x, y, _ = small
    model = make()
    model.fit(np.tile(x, (40, 1, 1, 1)), np.tile(y, 40), batch_size=BATCH, verbose=0)
    assert hits(model) > 0.8
    model.adapt(x, y)
    assert hits(model) < 0.8
    model.fit(np.tile(x, (40, 1, 1, 1)), np.tile(y, 40), batch_size=BATCH, verbose=0)
    assert hits(model) > 0.8


def test_unlock_after_evaluate_takes_effect(
    make: Any, small: Any, by_hand: Any, shared_authority: ke.Authority
) -> None:
    x, y, _ = small
    model, other = make(), make()
    before = model.evaluate(x, y, verbose=0, return_dict=True)
    model.codebook = other.codebook
    model.unlock(authority=shared_authority)
    after = model.evaluate(x, y, verbose=0, return_dict=True)
    assert abs(after["loss"] - before["loss"]) > 1e-4
    close(after, by_hand(model, x, y))


def test_generator_needs_adapt_first(make: Any, small: Any) -> None:
    x, y, _ = small

    def generator() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        while True:
            yield x[:BATCH], y[:BATCH]

    model = make()
    with pytest.raises(ArgumentError, match=r"call `model.adapt\(x, y\)` with a sample first"):
        model.fit(generator(), verbose=0)
    model.adapt(x, y)
    model.fit(generator(), steps_per_epoch=4, shuffle=False, verbose=0)
    assert int(model.optimizer.iterations) == 4


def test_change_of_dtype_is_noticed(make: Any, small: Any) -> None:
    x, y, _ = small
    model = make()
    model.adapt(x, y)
    pixels = (x * 16).astype("uint8")
    with pytest.raises(ArgumentError, match=r"adapted to float32 inputs and is trained on .*uint8"):
        model.fit(pixels, y, verbose=0)
    model.adapt(pixels, y)
    model.fit(pixels, y, verbose=0)
    assert model._unlocked().training.traces.inputs.dtype == np.uint8


def test_adapt_needs_the_owner(shipped: Any, digits: Any) -> None:
    model = shipped.copy(unlock=False)
    model.unlock(bundle=shipped.bundles["alice"], passphrase=shipped.passphrase)
    with pytest.raises(LockedModelError, match=r"needs its owner: `unlock\(authority=...\)`"):
        model.adapt(digits.x, digits.y)
