"""What an export refuses and warns of: heads of copies, and trace labels as keys read them."""

import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import keras_encryip as ke
from keras_encryip.authority.tracer import Tracer
from keras_encryip.cli.demo import _classifier as readme_classifier
from keras_encryip.errors import ExportError
from keras_encryip.export import saved_model as export
from keras_encryip.export.checks import (
    WATCHED_USERS,
    check_spread,
    check_trace_mass,
    check_traces,
    column_spread,
    exact_copies,
    what_keys_show,
)
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.trace_set import TraceSet
from keras_encryip.tracing.statistics import SIGNIFICANCE

# --- column spread -------------------------------------------------------------------


def pairs(*, trace: int = 0) -> LabelAssignment:
    """Two classes of two homophones: labels 0 and 1, 2 and 3; then trace labels."""
    labels = np.array([[0, 1], [2, 3]], np.int32)
    read = np.tile(np.array([[0, 1]], np.int32), (trace, 1))
    slots = np.arange(4 + trace, dtype=np.uint16)
    return LabelAssignment(labels, np.arange(4, 4 + trace, dtype=np.int32), read, slots)


POINTS = np.array([[0.0, 1.0, 10.0, 13.0]])
# To the nearest of the same class, by that to the nearest of the other:
# 1/10, 1/9, 3/9, 3/12; the median is between 1/9 and 1/4.
MEDIAN = (1 / 9 + 1 / 4) / 2


@pytest.mark.parametrize(
    ("kernel", "bias", "expected"),
    [
        pytest.param(POINTS, None, MEDIAN, id="kernel"),
        pytest.param(np.zeros((3, 4)), POINTS[0], MEDIAN, id="bias"),
        pytest.param(np.repeat(POINTS, 4, 0), np.ones(4), MEDIAN, id="scale-does-not-matter"),
        pytest.param(np.array([[5.0, 5.0, 7.0, 7.0]]), None, 0.0, id="copies"),
        pytest.param(np.array([[0.0, 3.0, 1.0, 4.0]]), None, 3.0, id="interleaved"),
    ],
)
def test_column_spread(kernel: np.ndarray, bias: Any, expected: float) -> None:
    assert column_spread(kernel, bias, pairs()) == pytest.approx(expected)


def test_column_spread_ignores_trace_labels() -> None:
    kernel = np.hstack([POINTS, [[0.5, 10.5]]])
    assert column_spread(kernel, None, pairs(trace=2)) == pytest.approx(MEDIAN)


def test_column_spread_of_single_homophones() -> None:
    assert column_spread(POINTS, None, LabelAssignment.draw(4, 1, 0, 256)) == float("inf")


@pytest.mark.parametrize("classes", [10, 3000], ids=["all-classes", "sampled-classes"])
def test_column_spread_of_noise_is_about_one(classes: int) -> None:
    assignment = LabelAssignment.draw(classes, 4, 0, 256)
    kernel = np.random.default_rng(0).normal(size=(32, assignment.num_labels))
    assert 0.9 < column_spread(kernel, None, assignment) < 2


# --- copies that training did not reach ----------------------------------------------


def head(kernel: np.ndarray) -> Any:
    """As much of a model as `check_spread` looks at."""
    kernel = kernel.astype(np.float32)
    layer = SimpleNamespace(kernel=kernel, bias=np.zeros(kernel.shape[1]), use_bias=True)
    return SimpleNamespace(name="large", confused_labels=layer)


def copied(assignment: LabelAssignment, reached: int, distance: float = 0.3) -> Any:
    """A head of copies, up to rounding, where the labels of the first classes moved apart."""
    random = np.random.default_rng(0)
    columns = random.normal(size=(16, assignment.num_labels))
    columns[:, assignment.labels] = random.normal(size=(16, assignment.num_classes, 1))
    columns *= 1 + random.normal(0, 1e-7, columns.shape)
    moved = assignment.labels[:reached]
    columns[:, moved] += distance * random.normal(size=(16, *moved.shape))
    return head(columns)


@pytest.mark.parametrize("homophones", [2, 5])
@pytest.mark.parametrize("reached", [10, 4_000, 9_999])
def test_labels_that_no_sample_reached_do_not_make_export_refuse(
    reached: int, homophones: int
) -> None:
    assignment = LabelAssignment.draw(10_000, homophones, 64, 256)
    left = (10_000 - reached) * homophones
    message = (
        f"head of model 'large', {left:,} of {10_000 * homophones:,} confused labels are still "
        f"exact copies: no training sample reached them, in {10_000 - reached:,} of 10,000 "
        "classes.*can tell which of these labels belong together"
    )
    with pytest.warns(UserWarning, match=message):
        check_spread(copied(assignment, reached), assignment)


def test_a_head_that_was_reached_everywhere_is_not_warned_of() -> None:
    assignment = LabelAssignment.draw(2_000, 3, 64, 256)
    check_spread(copied(assignment, 2_000), assignment)
    single = LabelAssignment.draw(2_000, 1, 64, 256)
    check_spread(copied(single, 0), single)


@pytest.mark.parametrize(("reached", "distance"), [(0, 0.3), (10_000, 1e-4), (4_000, 1e-4)])
def test_a_head_of_copies_is_refused_however_large(reached: int, distance: float) -> None:
    """Nothing was reached, or what was did not move apart."""
    assignment = LabelAssignment.draw(10_000, 2, 64, 256)
    with pytest.raises(ExportError, match="'large' still consists of copies"):
        check_spread(copied(assignment, reached, distance), assignment)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_exact_copies(scale: float) -> None:
    """0 and 1 are equal to rounding, and 2 and 3 are not; trace labels do not matter."""
    column = np.random.default_rng(0).normal(size=(8, 1))
    kernel = scale * np.hstack([column, column * (1 + 1e-7), column, column * 1.001, column])
    assignment = pairs(trace=1)
    assert exact_copies(kernel, None, assignment).tolist() == [[True, True], [False, False]]
    bias = scale * np.array([0, 1, 2, 3, 4])
    assert not exact_copies(kernel, bias, assignment).any(), "biases tell them apart"


def test_classes_without_samples_are_exported_with_a_warning(
    trained_classifier: keras.Model, digits: Any, shared_authority: ke.Authority, tmp_path: Path
) -> None:
    options = {"homophones": 4, "trace_labels": 0, "strategy": "random"}
    model = ke.protect(trained_classifier, shared_authority, name="seven", **options)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    some = digits.y < 7
    model.fit(digits.x[some], digits.y[some], epochs=2, verbose=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ke.export_saved_model(model, tmp_path / "1")
    (found,) = (w for w in caught if "exact copies" in str(w.message))
    assert re.search("12 of 40 confused labels .* in 3 of 10 classes", str(found.message))
    assert found.filename == __file__, "it points to the call"
    assert (tmp_path / "1" / "saved_model.pb").exists()


# --- what users' keys decode ---------------------------------------------------------


def answering(confused: np.ndarray) -> Any:
    """A model of which input i is answered with row i."""

    class Model:
        name = "m"

        def __call__(self, inputs: np.ndarray, training: bool) -> np.ndarray:
            return confused[inputs[:, 0].astype(int)].astype(np.float32)

    return Model()


def unlocked(traces: TraceSet, assignment: LabelAssignment) -> Any:
    return SimpleNamespace(training=SimpleNamespace(traces=traces), assignment=lambda: assignment)


def even(assignment: LabelAssignment) -> np.ndarray:
    return np.full(assignment.trace.size, 0.5)


def spread_over_traces(own: float, trace_labels: int = 64) -> tuple[Any, TraceSet, np.ndarray]:
    """Trace inputs that are answered with trace labels alone: `own` on theirs, and on all others
    alike."""
    assignment = LabelAssignment.draw(10, 4, trace_labels, 256)
    confused = np.zeros((trace_labels, assignment.num_labels))
    confused[:, assignment.trace] = (1 - own) / (trace_labels - 1)
    confused[np.arange(trace_labels), assignment.trace] = own
    inputs = np.arange(trace_labels, dtype=np.float32)[:, None]
    return assignment, TraceSet(inputs, assignment.trace), confused


def test_what_all_trace_labels_share_is_not_read_as_one_of_them() -> None:
    """Each trace label outweighs every class, and a key reads the sums of them all."""
    assignment, traces, confused = spread_over_traces(0.03)
    hits, chances = what_keys_show(confused, traces, assignment, even(assignment))
    assert confused[:, assignment.labels].sum(-1).max() < 0.03
    assert 3 < np.quantile(hits, 0.25) < 25
    assert np.median(chances) * WATCHED_USERS > SIGNIFICANCE
    with pytest.warns(
        UserWarning, match=r"has learned \d+ of its 64 .* that is too few: a service"
    ):
        check_traces(answering(confused), unlocked(traces, assignment), even(assignment))


@pytest.mark.parametrize("biased", [False, True], ids=["even", "rare-and-common"])
@pytest.mark.parametrize("trace_labels", [8, 64], ids=["too-few-for-proof", "enough"])
def test_what_outweighs_the_others_is_read_with_every_key(trace_labels: int, biased: bool) -> None:
    """An innocent shares all bits of a key with the chance that its bits are drawn again."""
    assignment, traces, confused = spread_over_traces(0.8, trace_labels)
    biases = even(assignment)
    if biased:
        biases = np.where(np.arange(trace_labels) % 2, 0.25, 0.75)
    hits, chances = what_keys_show(confused, traces, assignment, biases)
    assert set(hits) == {trace_labels}
    if biased:  # at the most likely codeword, and at the least likely one
        assert (chances >= 0.25**trace_labels).all()
        assert (chances <= 1).all()
    else:
        np.testing.assert_allclose(chances, 0.5**trace_labels, rtol=1e-3)
    check_traces(answering(confused), unlocked(traces, assignment), biases)


def test_a_few_labels_that_were_not_learned_do_not_matter() -> None:
    """50 of 64 show a user among 1,000 by 50 bits: 2⁻⁵⁰; 25 of 64 do not."""
    for learned, warned in ((50, False), (25, True)):
        assignment, traces, confused = spread_over_traces(0.8)
        confused[learned:] = 0
        # The others are answered with a class that neither bit reads there: no evidence.
        for i in range(learned, 64):
            neither = next(k for k in range(10) if k not in assignment.pairs[i])
            confused[i, assignment.labels[neither]] = 0.25
        hits, chances = what_keys_show(confused, traces, assignment, even(assignment))
        assert set(hits) == {learned}
        np.testing.assert_allclose(chances, 0.5**learned, rtol=1e-3)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check_traces(answering(confused), unlocked(traces, assignment), even(assignment))
        found = [str(w.message) for w in caught]
        assert len(found) == warned
        assert all(f"has learned {learned} of its 64 trace labels" in text for text in found)


def test_answers_that_no_key_decides_show_nobody() -> None:
    """Class 3 is answered throughout: it tells only what some trace labels' two classes are."""
    assignment, traces, confused = spread_over_traces(0.3)
    confused *= 0.5
    confused[:, assignment.labels[3]] = 0.125
    hits, chances = what_keys_show(confused, traces, assignment, even(assignment))
    assert hits.mean() == pytest.approx(6.4, abs=3.5)
    assert np.median(chances) > 1e-4


def test_outputs_for_every_position_are_averaged() -> None:
    assignment, traces, confused = spread_over_traces(0.5)
    nothing = np.zeros_like(confused)
    both = np.stack([confused, nothing], 1)
    for found, expected in zip(
        what_keys_show(both, traces, assignment, even(assignment)),
        what_keys_show(confused, traces, assignment, even(assignment)),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.long
def test_readme_s_five_epochs_on_digits(
    digits: Any, authority: ke.Authority, tmp_path: Path
) -> None:
    """They are enough for leakers to be named among 300 users, and for the export to say nothing
    of trace labels; it counts what `Tracer.service` does. 140 samples do not reach 64 homophones
    of each class."""
    keras.utils.set_random_seed(0)
    classifier = readme_classifier()
    classifier.compile("adam", "sparse_categorical_crossentropy")
    classifier.fit(digits.x, digits.y, epochs=5, verbose=0)
    model = ke.protect(classifier, authority, name="digits")
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(digits.x, digits.y, epochs=5, verbose=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ke.export_saved_model(model, tmp_path / "1")
    state, assignment = model._unlocked().training, model._unlocked().assignment()
    confused = model.predict(state.traces.inputs, verbose=0)
    biases = authority.keys.slots.biases[assignment.slots[assignment.trace]]
    hits, chances = what_keys_show(confused, state.traces, assignment, biases)
    assert np.quantile(chances, 0.75) * WATCHED_USERS <= SIGNIFICANCE

    for user in ("alice", "bob"):
        authority.issue(user, tmp_path / user, passphrase="p", scrypt_log2_n=14)
    authority.enroll(f"customer {number}" for number in range(300))
    for user in ("alice", "bob"):
        decoder = ke.Decoder.open(tmp_path / "1", tmp_path / user, "p")
        report = Tracer(authority).service(
            lambda batch, reads=decoder: reads.labels(model.predict(batch, verbose=0)), model=model
        )
        assert [s.subject for s in report.guilty] == [user]
        chance = report.guilty[0].p_value / report.tests
        assert chances.min() / 10 <= chance <= chances.max() * 10, "it is what was simulated"
    assert np.quantile(hits, 0.25, method="lower") >= 50
    assert [str(w.message) for w in caught if w.category is UserWarning] == []


# --- trace mass on real inputs -------------------------------------------------------


def real_inputs(trace_mass: float, lead: float) -> tuple[Any, LabelAssignment, np.ndarray]:
    """300 inputs of class 2, `lead` ahead of class 5, and one trace label that decides: it reads
    as class 5 or 1."""
    assignment = LabelAssignment.draw(10, 4, 64, 256)
    assignment.pairs[7] = (5, 1)
    confused = np.zeros((300, assignment.num_labels))
    confused[:, assignment.trace[7]] = trace_mass
    for k, share in ((2, 0.5 + lead / 2), (5, 0.5 - lead / 2)):
        confused[:, assignment.labels[k]] = (1 - trace_mass) * share / 4
    return answering(confused), assignment, np.arange(300, dtype=np.float32)[:, None]


def test_the_owner_is_told_if_trace_labels_change_what_users_read() -> None:
    """Under half of the keys trace label 7 reads as class 5, and all inputs with it."""
    model, assignment, samples = real_inputs(trace_mass=0.1, lead=0.05)
    message = (
        r"'m' puts 10.0% of its probability on trace labels for real inputs: users would read "
        r"(\d+\.\d)% of 300 samples differently, up to 100.0% with some keys .more than 0.5%.. "
        "Train it for more epochs before exporting, or protect it with fewer `trace_labels`"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        check_trace_mass(model, samples, assignment)
    found = re.search(message, str(caught[0].message))
    assert found
    assert float(found[1]) == pytest.approx(50, abs=20)


def test_a_few_inputs_are_enough_for_a_warning() -> None:
    """2 of 300 lie so near to the border: 0.7 %."""
    model, assignment, samples = real_inputs(trace_mass=0.1, lead=0.05)
    safe, other, _ = real_inputs(trace_mass=0.1, lead=0.5)
    order = np.argsort(other.moved_to(assignment))
    rows = safe(samples, training=False)[:, order]
    rows[:2] = model(samples[:2], training=False)
    with pytest.warns(UserWarning, match=r"up to 0.7% with some keys"):
        check_trace_mass(answering(rows), samples, assignment)
    rows[1] = rows[2]
    check_trace_mass(answering(rows), samples, assignment)


def test_trace_mass_that_decides_nothing_is_not_warned_of() -> None:
    for mass, lead in ((0.1, 0.5), (0.01, 0.05), (0.0, 0.001)):
        model, assignment, samples = real_inputs(mass, lead)
        check_trace_mass(model, samples, assignment)
    model, assignment, samples = real_inputs(trace_mass=0.4, lead=0.01)
    check_trace_mass(model, None, assignment)
    check_trace_mass(model, samples[:0], assignment)
    check_trace_mass(model, samples, LabelAssignment.draw(10, 4, 0, 256))


def test_the_export_looks_at_the_samples_that_were_kept(
    shipped: Any, digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are training inputs, which `adapt` keeps."""
    looked: list[Any] = []
    monkeypatch.setattr(export, "check_trace_mass", lambda *arguments: looked.append(arguments))
    ke.export_saved_model(shipped.model, tmp_path / "1")
    ((model, samples, _),) = looked
    assert model is shipped.model
    assert samples.shape == digits.x.shape, "2,048 would be kept"
    known = {x.tobytes() for x in digits.x}
    assert {x.tobytes() for x in samples} == known
