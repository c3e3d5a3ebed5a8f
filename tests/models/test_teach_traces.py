"""Trace labels are learned when training is over: in their own columns, at no cost."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import keras_encryip as ke
from keras_encryip.labels.trace_set import TraceSet
from keras_encryip.models.columns import exact_copies, nearest_distances, tells
from keras_encryip.models.teach_traces import teach_traces

layers = keras.layers


@pytest.fixture
def protect(digits: Any, shared_authority: ke.Authority) -> Callable[..., ke.ProtectedModel]:
    """A model that has looked at the digits, and was not trained since."""

    def protect(classifier: keras.Model, x: Any = None, **options: Any) -> ke.ProtectedModel:
        options = {"name": "digits", "homophones": 4, "trace_labels": 16, **options}
        model = ke.protect(classifier, shared_authority, **options)
        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
        model.adapt(digits.x if x is None else x, digits.y)
        return model

    return protect


def head_of(model: ke.ProtectedModel) -> tuple[np.ndarray, np.ndarray]:
    kernel, bias = (keras.ops.convert_to_numpy(w).copy() for w in model.confused_labels.weights)
    return kernel, bias


def learned(model: ke.ProtectedModel) -> tuple[float, float]:
    """The shares of trace labels, and of ownership inputs, that the model knows."""
    traces = model._unlocked().traces
    of_trace = np.isin(traces.labels, model._unlocked().assignment().trace)
    hits = model.predict(traces.inputs, verbose=0).argmax(-1) == traces.labels
    return float(hits[of_trace].mean()), float(hits[~of_trace].mean())


def on_natural(model: ke.ProtectedModel, x: Any, y: np.ndarray) -> tuple[float, float]:
    """Accuracy, and the mean probability of all trace labels together."""
    confused = model.predict(x, verbose=0)
    accuracy = (model.decode(confused).argmax(-1) == y).mean()
    trace = confused[..., model._unlocked().assignment().trace].sum(-1)
    return float(accuracy), float(trace.mean())


def test_labels_are_learned_and_natural_inputs_see_nothing(
    protect: Any, trained_classifier: keras.Model, digits: Any
) -> None:
    model = protect(trained_classifier)
    before, _ = on_natural(model, digits.x_test, digits.y_test)
    assert max(learned(model)) < 0.3
    model.fit(digits.x, digits.y, batch_size=64, verbose=0)
    assert min(learned(model)) >= 0.85
    accuracy, trace = on_natural(model, digits.x_test, digits.y_test)
    assert accuracy > before - 0.02
    assert trace < 0.002

    # A short training moves the features; it ends with the labels known again.
    model.fit(digits.x[:256], digits.y[:256], batch_size=64, verbose=0)
    assert min(learned(model)) >= 0.75  # of 8 labels, whose inputs the system draws
    assert on_natural(model, digits.x_test, digits.y_test)[1] < 0.002


def test_neither_bias_nor_length_nor_neighbours_tell_trace_labels(
    protect: Any, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keras.utils.set_random_seed(0)
    body = [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(96, activation="relu")]
    classifier = keras.Sequential([*body, layers.Dense(10, activation="softmax")])
    classifier.compile(keras.optimizers.Adam(0.005), "sparse_categorical_crossentropy")
    classifier.fit(digits.x, digits.y, batch_size=32, epochs=5, verbose=0)
    model = protect(classifier, homophones=32, trace_labels=64)
    with monkeypatch.context() as patch:
        patch.setattr("keras_encryip.models.teach_traces.can_hide", lambda *head: False)
        model.fit(digits.x, digits.y, batch_size=64, epochs=2, verbose=0)
    plain = signs(model)
    assert min(plain["length"], plain["nearest"]) > 0.9, "what there is to hide"
    before, _ = on_natural(model, digits.x_test, digits.y_test)

    model.teach_traces()
    assert max(abs(auc - 0.5) for auc in signs(model).values()) < 0.2
    assert min(learned(model)) >= 0.8
    assert on_natural(model, digits.x_test, digits.y_test)[0] >= before - 0.015


def signs(model: ke.ProtectedModel) -> dict[str, float]:
    kernel, bias = head_of(model)
    marked = model._unlocked().assignment().classes < 0
    lengths, nearest = np.linalg.norm(kernel, axis=0), nearest_distances(kernel.T)
    shown = {"bias": bias, "length": lengths, "nearest": nearest}
    return {name: tells(sign, marked) for name, sign in shown.items()}


def test_teaching_again_and_again_lengthens_no_column_for_ever(
    protect: Any, trained_classifier: keras.Model, digits: Any
) -> None:
    model = protect(trained_classifier, homophones=8, trace_labels=16)
    model.fit(digits.x, digits.y, batch_size=64, verbose=0)
    first = np.linalg.norm(head_of(model)[0], axis=0).mean()
    for _ in range(4):
        model.teach_traces()
    assert np.linalg.norm(head_of(model)[0], axis=0).mean() < 1.4 * first
    assert min(learned(model)) >= 0.85


def test_classes_that_lie_far_apart(protect: Any, trained_classifier: keras.Model) -> None:
    """Further than float32 has exponents: warnings are errors in tests."""
    model = protect(trained_classifier)
    kernel, _ = head_of(model)
    random = np.random.default_rng(0)
    model.confused_labels.kernel.assign(300 * (kernel + random.normal(0, 0.02, kernel.shape)))
    model.teach_traces()
    assert all(np.isfinite(each).all() for each in head_of(model))


def test_copies_stay_copies(protect: Any, trained_classifier: keras.Model) -> None:
    """An export refuses them: offsets must not make them look as if training had parted them."""
    model = protect(trained_classifier)
    assignment = model._unlocked().assignment()
    kernel, _ = head_of(model)
    kernel[:, assignment.labels[1:]] += np.random.default_rng(0).normal(
        0, 0.02, (len(kernel), *assignment.labels[1:].shape)
    )
    model.confused_labels.kernel.assign(kernel)
    model.teach_traces()
    after, bias = head_of(model)
    ordinary = np.setdiff1d(assignment.labels, model._unlocked().traces.labels)
    others = np.setdiff1d(ordinary, assignment.labels[0])
    assert (after[:, others] != kernel[:, others]).any(0).all(), "they got offsets"
    same = np.intersect1d(ordinary, assignment.labels[0])
    np.testing.assert_array_equal(after[:, same], kernel[:, same])
    assert exact_copies(after, bias, assignment)[0].sum() >= len(same)


def test_no_other_column_changes(protect: Any, trained_classifier: keras.Model) -> None:
    """But those of trace labels, and of homophones that ownership inputs lie on, while no training
    has parted homophones. No layer learns."""
    model = protect(trained_classifier)
    kernel, bias = head_of(model)
    layers_before = [np.copy(w) for w in model.backbone.get_weights()]
    model.teach_traces()
    chosen = np.unique(model._unlocked().traces.labels)
    trace = model._unlocked().assignment().trace
    after, bias_after = head_of(model)
    changed = np.flatnonzero((after != kernel).any(0))
    np.testing.assert_array_equal(changed, chosen)
    rises = bias_after - bias
    for k, homophones in enumerate(model._unlocked().assignment().labels):
        others = np.setdiff1d(homophones, chosen)
        assert np.ptp(rises[others]) < 1e-5, "they rise together, for the one that is silent"
        assert rises[others[0]] > 0 or len(others) == len(homophones), k
    for old, new in zip(layers_before, model.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    of_classes = set(chosen) - set(trace)
    classes = model._unlocked().assignment().classes[sorted(of_classes)]
    assert len(classes) == len(set(classes)), "one homophone of a class: it has the others"


@pytest.mark.parametrize("homophones", [2, 4, 64])
def test_natural_inputs_are_read_as_before(
    homophones: int, protect: Any, trained_classifier: keras.Model, digits: Any
) -> None:
    """Half of a class's homophones, or one of 64, go to ownership inputs: the rest makes up."""
    model = protect(trained_classifier, homophones=homophones)
    before = model.decode(model.predict(digits.x_test, verbose=0))
    model.teach_traces()
    after = model.decode(model.predict(digits.x_test, verbose=0))
    assert (after.argmax(-1) == before.argmax(-1)).mean() > 0.99
    assert np.abs(after - before).mean() < 2e-3


def test_samples_are_read_as_before_whatever_trace_inputs_are(
    protect: Any, trained_classifier: keras.Model
) -> None:
    """Trace inputs that are samples themselves cannot be told from them."""
    model = protect(trained_classifier)
    state = model._unlocked().training
    traces = TraceSet(state.samples[: len(state.traces.labels)], state.traces.labels)
    before = head_of(model)
    teach_traces(model, traces, model._unlocked().assignment(), state.samples)
    natural = model.decode(model.predict(state.samples, verbose=0))
    model.confused_labels.set_weights(before)
    read = model.decode(model.predict(state.samples, verbose=0)).argmax(-1)
    assert (natural.argmax(-1) == read).mean() >= 0.995


def test_the_same_weights_learn_the_same(protect: Any, trained_classifier: keras.Model) -> None:
    """Workers of a strategy each do it by themselves."""
    model = protect(trained_classifier)
    start = model.get_weights()
    model.teach_traces()
    first = head_of(model)
    model.set_weights(start)
    keras.utils.set_random_seed(5)
    model.teach_traces()
    for one, other in zip(first, head_of(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_with_one_homophone_only_trace_labels_are_learned(
    protect: Any, trained_classifier: keras.Model, digits: Any
) -> None:
    """A class has no other label to go on with, so that ownership inputs teach nothing."""
    model = protect(trained_classifier, homophones=1)
    before, (kernel, _) = model.predict(digits.x_test, verbose=0), head_of(model)
    model.teach_traces()
    assignment = model._unlocked().assignment()
    changed = np.flatnonzero((head_of(model)[0] != kernel).any(0))
    np.testing.assert_array_equal(changed, np.sort(assignment.trace))
    assert learned(model)[0] >= 0.9
    after = model.predict(digits.x_test, verbose=0)
    np.testing.assert_allclose(model.decode(after), model.decode(before), atol=0.05)


def image(dtype: str) -> tuple[list[Any], Callable[[np.ndarray], np.ndarray]]:
    inputs = [keras.Input((8, 8, 1), dtype=dtype), layers.Rescaling(1 / 16), layers.Flatten()]
    return inputs, lambda x: (16 * x).astype(dtype)


def vector(dtype: str) -> tuple[list[Any], Callable[[np.ndarray], np.ndarray]]:
    return [keras.Input((64,), dtype=dtype)], lambda x: x.reshape(-1, 64).astype(dtype)


@pytest.fixture
def float64() -> Any:
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


def check_inputs(kind: Any, dtype: str, protect: Any, digits: Any) -> None:
    body, convert = kind(dtype)
    hidden = layers.Dense(32, activation="relu")
    classifier = keras.Sequential([*body, hidden, layers.Dense(10, activation="softmax")])
    classifier.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    x, x_test = convert(digits.x), convert(digits.x_test)
    classifier.fit(x, digits.y, batch_size=64, epochs=3, verbose=0)
    model = protect(classifier, x)
    assert model._unlocked().traces.inputs.dtype == dtype
    before, _ = on_natural(model, x_test, digits.y_test)
    model.teach_traces()
    assert learned(model)[0] >= 0.8
    accuracy, trace = on_natural(model, x_test, digits.y_test)
    assert accuracy > before - 0.02
    assert trace < 0.01


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(image, "uint8"), (image, "float32"), (vector, "float32"), (vector, "int32")],
    ids=["uint8-image", "image", "vector", "int32-vector"],
)
def test_inputs_of_any_kind(kind: Any, dtype: str, protect: Any, digits: Any) -> None:
    check_inputs(kind, dtype, protect, digits)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", [image, vector])
def test_inputs_of_64_bits(kind: Any, protect: Any, digits: Any) -> None:
    check_inputs(kind, "float64", protect, digits)


def test_each_place_of_a_trace_input_gets_its_label(shared_authority: ke.Authority) -> None:
    """One label for each of 3 places: which of its first 4 numbers is the highest."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(1500, 3, 16)).astype("float32")
    y = x[..., :4].argmax(-1)
    body = [keras.Input((3, 16)), layers.Dense(256, activation="relu")]
    classifier = keras.Sequential([*body, layers.Dense(4, activation="softmax")])
    options = {"homophones": 4, "trace_labels": 8, "strategy": "random", "name": "places"}
    model = ke.protect(classifier, shared_authority, **options)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=64, epochs=2, verbose=0)
    traces = model._unlocked().traces
    of_trace = np.isin(traces.labels, model._unlocked().assignment().trace)
    answers = model.predict(traces.inputs[of_trace], verbose=0).argmax(-1)
    assert answers.shape == (of_trace.sum(), 3)
    assert (answers == traces.labels[of_trace][:, None]).mean() > 0.8
    assert on_natural(model, x, y)[1] < 0.01


def test_a_constraint_of_the_head_holds(protect: Any, new_classifier: Any) -> None:
    limit = keras.constraints.MaxNorm(0.5, axis=0)
    model = protect(new_classifier(kernel_constraint=limit))
    kernel = model.confused_labels.kernel
    kernel.assign(limit(kernel))  # as the first step of training does
    model.teach_traces()
    assert np.linalg.norm(head_of(model)[0], axis=0).max() <= 0.5 + 1e-5


def test_without_trace_labels_nothing_changes(protect: Any, trained_classifier: Any) -> None:
    model = protect(trained_classifier, trace_labels=0, homophones=1)
    before = head_of(model)
    model.teach_traces()
    for old, new in zip(before, head_of(model), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["kernel", "bias"])
def test_a_training_that_diverged_is_left_as_it_is(bad: float, where: str, shipped: Any) -> None:
    """Without a warning of numpy's, and without hours of L-BFGS on numbers that are none."""
    model = shipped.copy()
    variable = getattr(model.confused_labels, where)
    values = keras.ops.convert_to_numpy(variable).copy()
    values.flat[0] = bad
    variable.assign(values)
    before = model.get_weights()
    model.teach_traces()
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
