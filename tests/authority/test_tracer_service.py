"""Services and decode tables name the user whose key they run on, and nobody else."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_encryip as ke
from keras_encryip.authority.keys import AuthorityKeys
from keras_encryip.authority.tracer import Tracer
from keras_encryip.client.decoder import Decoder
from keras_encryip.errors import ArgumentError, LedgerError, RevokedKeyError, ServiceError
from keras_encryip.formats.key_bundle import KeyBundle
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook, ModelMetadata
from keras_encryip.labels.trace_set import TraceSet
from keras_encryip.models import trace_inputs as hardening
from keras_encryip.tracing.report import TraceReport
from keras_encryip.tracing.statistics import SIGNIFICANCE

PASSPHRASE = "correct horse"
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
USERS = [f"user {i:02}" for i in range(20)]
CROWD = 300
LEAKER, OTHER, REVOKED = USERS[7], USERS[11], USERS[3]
TRACE_LABELS = 96
LABELS = 10 * 4 + TRACE_LABELS

Service = Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class World:
    """Three releases of one model.

    1 is the first; 2 has the same weights and, since a user was revoked, another codebook;
    3 was trained on, with new trace inputs.
    """

    authority: ke.Authority
    model: ke.ProtectedModel
    folder: Path
    releases: dict[int, Any]

    def confused(self, release: int) -> Service:
        serve = self.releases[release].signatures["serving_default"]
        return lambda batch: serve(inputs=tf.constant(batch))["confused"].numpy()

    def bundle(self, user: str) -> Path:
        return self.folder / f"{user}.keybundle"

    def decoder(self, user: str, release: int = 1) -> Decoder:
        path = self.folder / "digits" / str(release)
        return Decoder.open(path, self.bundle(user), PASSPHRASE)

    def service(self, user: str = LEAKER, release: int = 1) -> Service:
        """What a user puts on the web."""
        decoder, confused = self.decoder(user, release), self.confused(release)
        return lambda batch: decoder.labels(confused(batch))

    def trace(self, service: Any, **options: Any) -> TraceReport:
        return Tracer(self.authority).service(
            service, model="digits", **{"batch_size": 256, **options}
        )


@pytest.fixture(scope="module")
def world(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    url = f"sqlite:///{folder}/acme.authority"
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(128, "relu"), keras.layers.Dense(10)]
    classifier = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    with (
        pytest.MonkeyPatch.context() as patch,
        ke.Authority.create(url, "owner", scrypt_log2_n=14) as authority,
    ):
        patch.setattr(hardening, "STEPS", 20)
        for user in USERS:
            path = folder / f"{user}.keybundle"
            authority.issue(user, path, passphrase=PASSPHRASE, scrypt_log2_n=14)
        authority.enroll(f"pending {i}" for i in range(CROWD))
        options = {"class_names": NAMES, "homophones": 4, "trace_labels": TRACE_LABELS}
        model = ke.protect(classifier, authority, name="digits", **options)
        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
        model.fit(digits.x, digits.y, batch_size=32, epochs=9, verbose=0)
        ke.export_saved_model(model, folder / "digits" / "1")
        authority.revoke(REVOKED)
        ke.export_saved_model(model, folder / "digits" / "2")
        model.adapt(digits.x, digits.y)
        model.fit(digits.x, digits.y, batch_size=32, epochs=9, verbose=0)
        ke.export_saved_model(model, folder / "digits" / "3")
        releases = {i: tf.saved_model.load(str(folder / "digits" / str(i))) for i in (1, 2, 3)}
        yield World(authority, model, folder, releases)


def names(report: TraceReport) -> list[str]:
    return sorted(suspect.subject for suspect in report.guilty)


def mixed(service: Service, share: float, instead: Callable[[], Any]) -> Service:
    """A service that answers otherwise to this share of the inputs."""
    random = np.random.default_rng(0)

    def answer(batch: np.ndarray) -> list[Any]:
        labels = service(batch).tolist()
        return [instead() if random.random() < share else label for label in labels]

    return answer


# --- who is found --------------------------------------------------------------


@pytest.mark.parametrize("form", ["labels", "names", "probabilities"])
def test_the_leakers_service_is_named(world: World, form: str) -> None:
    decode, confused = getattr(world.decoder(LEAKER), form), world.confused(1)
    report = world.trace(lambda batch: decode(confused(batch)))
    assert (report.verdict, names(report)) == ("guilty", [LEAKER])
    assert (report.kind, report.model, report.score_name) == ("service", "digits", "score")
    assert (report.tested, report.tests) == (320, 320 * 2), "trace sets"
    assert report.p_value < 1e-12
    first, *others = report.suspects
    assert (first.subject, first.status) == (LEAKER, "active")
    assert first.score > report.threshold > max(s.score for s in others)
    assert {s.guilty for s in others} == {False}
    assert report.evidence["this is the model"] == "yes"
    assert report.evidence["comparisons"] == 2
    assert report.evidence["unanswered"] == 0


@pytest.mark.parametrize("release", [1, 2, 3])
@pytest.mark.parametrize("user", [LEAKER, OTHER])
def test_every_release_is_traced(world: World, release: int, user: str) -> None:
    """Under either codebook, and with either trace set."""
    report = world.trace(world.service(user, release))
    assert names(report) == [user]
    assert report.p_value < 1e-10


def test_a_revoked_user_still_serves_the_old_release(world: World) -> None:
    (suspect,) = world.trace(world.service(REVOKED, 1)).guilty
    assert (suspect.subject, suspect.status) == (REVOKED, "revoked")
    with pytest.raises(RevokedKeyError):
        world.decoder(REVOKED, 2)


def test_wrong_labels_on_purpose(world: World) -> None:
    random = np.random.default_rng(1)
    report = world.trace(mixed(world.service(), 0.3, lambda: int(random.integers(10))))
    assert names(report) == [LEAKER]


def test_refusals(world: World) -> None:
    report = world.trace(mixed(world.service(), 0.5, lambda: None))
    assert names(report) == [LEAKER]
    assert 60 < report.evidence["unanswered"] < 180
    read = int(report.evidence["live labels read"].split()[0])
    assert 40 < read < TRACE_LABELS


def test_partial_answers_are_too_few(world: World) -> None:
    """5 trace labels prove nothing."""
    assignment = world.authority.model_store.model_named("digits").assignment
    table = np.full(assignment.num_labels, -1)
    own = world.decoder(LEAKER).secret_table()
    table[assignment.trace[:5]] = own[assignment.trace[:5]]
    report = Tracer(world.authority).table(table, model="digits")
    assert (report.verdict, report.threshold) == ("inconclusive", None)
    assert report.evidence["live labels read"] == f"5 of {TRACE_LABELS}"
    assert report.p_value > SIGNIFICANCE


def test_passing_the_model_itself(world: World) -> None:
    report = Tracer(world.authority).service(world.service(), model=world.model, batch_size=256)
    assert names(report) == [LEAKER]


class Handler(BaseHTTPRequestHandler):
    """TF Serving's REST API, for one model."""

    confused: Service

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        instances = json.loads(self.rfile.read(length))["instances"]
        rows = type(self).confused(np.array(instances, np.float32))
        body = json.dumps({"predictions": rows.tolist()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served(world: World) -> Iterator[str]:
    """Address of release 1 on a real socket: confused labels."""
    handler = type("Release1", (Handler,), {"confused": staticmethod(world.confused(1))})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/models/digits"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_served_by_tf_serving(world: World, served: str) -> None:
    """A decoder reads the answers: whose model it is shows, and its user is no suspect."""
    report = world.trace(served, decoder=world.decoder(OTHER), batch_size=16)
    assert (report.verdict, report.evidence["this is the model"]) == ("inconclusive", "yes")
    assert report.evidence["decoded with the key of"].startswith(OTHER)
    assert report.tested == 319
    with pytest.raises(ServiceError, match=r"gives 136 numbers .* a `decoder` is needed"):
        world.trace(served)


def test_an_interrupted_run_goes_on(world: World, tmp_path: Path) -> None:
    asked: list[int] = []

    def stops(batch: np.ndarray) -> Any:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(len(batch))
        return world.service()(batch)

    options = {"transcript": tmp_path / "kept", "batch_size": 16}
    with pytest.raises(KeyboardInterrupt):
        world.trace(stops, **options)
    rest: list[int] = []

    def counts(batch: np.ndarray) -> Any:
        rest.append(len(batch))
        return world.service()(batch)

    again = world.trace(counts, **options)
    assert sum(asked) == 48
    assert sum(asked) + sum(rest) == 2 * (TRACE_LABELS + 32)
    whole = world.trace(world.service())
    for field in ("suspects", "evidence", "scores", "tests", "threshold"):
        assert getattr(again, field) == getattr(whole, field), field


# --- who is not ------------------------------------------------------------------


def inconclusive(report: TraceReport) -> bool:
    """Nobody is named, and the service was not even shown to run the model."""
    stated = report.evidence["this is the model"]
    return (report.verdict, report.guilty, stated) == ("inconclusive", [], "not shown")


def test_an_unprotected_classifier(world: World, trained_classifier: Any) -> None:
    report = world.trace(lambda batch: trained_classifier.predict(batch, verbose=0))
    assert inconclusive(report)


def test_another_model_of_the_same_user(world: World, new_classifier: Any) -> None:
    model = ke.protect(new_classifier(), world.authority, name="other", homophones=4)
    decoder = Decoder.open(
        Codebook.from_bytes(model.codebook.encode()), world.bundle(LEAKER), PASSPHRASE
    )
    report = world.trace(lambda batch: decoder.labels(model.predict(batch, verbose=0)))
    assert inconclusive(report)


def test_the_model_under_a_foreign_key(world: World) -> None:
    """It reads the codebook as random classes, all of them."""
    codebook = world.authority.model_store.codebooks_of(1)[0]
    stranger = AuthorityKeys.generate(4, 1024).user_keys(5, ["read"]).reader
    table = codebook.decode_table(stranger)
    confused = world.confused(1)
    assert inconclusive(world.trace(lambda batch: table[confused(batch).argmax(-1)]))


def test_the_model_with_its_trace_labels_cut_out(world: World) -> None:
    """A careful pirate is not named, but still runs this model."""
    decoder, confused = world.decoder(LEAKER), world.confused(1)
    trace = world.authority.model_store.model_named("digits").assignment.trace

    def service(batch: np.ndarray) -> Any:
        rows = confused(batch)
        rows[:, trace] = 0
        return decoder.labels(rows, quantised=True)

    report = world.trace(service)
    assert (report.verdict, report.evidence["this is the model"]) == ("inconclusive", "yes")


def test_random_services_accuse_nobody(create: Any) -> None:
    """And p-values are no smaller than chance has it: of 300, at most 30 below 0.1 expected."""
    authority = create(threshold=1)
    authority.enroll(f"user {i}" for i in range(CROWD))
    assignment = LabelAssignment.draw(10, 2, 20, 1024)
    authority.model_store.add_model(ModelMetadata(model="digits", class_names=NAMES), assignment)
    labels = np.concatenate([assignment.trace, assignment.labels[:, 0]])
    inputs = np.arange(len(labels), dtype=np.float32)[:, None]
    authority.model_store.save_training(1, b"", TraceSet(inputs, labels))
    random = np.random.default_rng(0)
    p_values = []
    for _ in range(300):
        report = Tracer(authority).service(
            lambda batch: random.integers(10, size=len(batch)), model="digits", batch_size=256
        )
        assert inconclusive(report)
        p_values.append(report.p_value)
    assert min(p_values) > SIGNIFICANCE
    assert (np.array(p_values) < 0.1).sum() < 60
    assert (np.array(p_values) < 1).any()


def test_constant_answers_accuse_nobody(world: World) -> None:
    for label in range(10):
        assert inconclusive(world.trace(lambda batch, label=label: [label] * len(batch)))


def test_nothing_but_refusals(world: World) -> None:
    with pytest.raises(ServiceError, match="refused every input"):
        world.trace(lambda batch: [None] * len(batch))


# --- tables ------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["decoder", "int32", "uint8", "int64"])
def test_a_table_names_its_user(world: World, form: str) -> None:
    decoder = world.decoder(LEAKER, 2)
    table = decoder if form == "decoder" else decoder.secret_table().astype(form)
    report = Tracer(world.authority).table(table, model="digits")
    assert (report.kind, names(report)) == ("table", [LEAKER])
    assert report.evidence["live labels read"] == f"{TRACE_LABELS} of {TRACE_LABELS}"
    assert report.tests == report.tested == 320, "codebooks of one model are one test"
    assert report.evidence["ordinary answers right"] == "40 of 40"


def test_a_table_with_gaps(world: World) -> None:
    table = world.decoder(LEAKER).secret_table().copy()
    trace = world.authority.model_store.model_named("digits").assignment.trace
    table[trace[:20]] = -1
    report = Tracer(world.authority).table(table, model="digits")
    assert names(report) == [LEAKER]
    assert report.evidence["live labels read"] == f"{TRACE_LABELS - 20} of {TRACE_LABELS}"
    nothing = Tracer(world.authority).table(np.full(LABELS, -1), model="digits")
    assert (nothing.verdict, nothing.p_value) == ("inconclusive", 1.0)


def test_a_merged_table_names_no_third(world: World) -> None:
    """How many labels name both: test_framing.py."""
    tables = [world.decoder(user).secret_table() for user in (LEAKER, OTHER)]
    trace = world.authority.model_store.model_named("digits").assignment.trace
    merged = tables[0].copy()
    merged[trace[::2]] = tables[1][trace[::2]]
    report = Tracer(world.authority).table(merged, model="digits")
    assert {s.subject for s in report.suspects[:2]} & {LEAKER, OTHER}
    assert set(names(report)) <= {LEAKER, OTHER}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.zeros(LABELS - 1, int), r"must hold 136 integers.* 'digits'. Received: shape \(135,\)"),
        (np.zeros((LABELS, 1), int), r"Received: shape \(136, 1\)"),
        (np.zeros(LABELS), "Received: shape .*, float64"),
        (np.full(LABELS, 10), "must hold classes 0 … 9, or -1"),
        (np.full(LABELS, -2), "must hold classes 0 … 9, or -1"),
        (["zero"] * LABELS, "Received: shape .*, <U4"),
        (None, r"Received: shape \(\), object"),
    ],
    ids=["short", "matrix", "floats", "high", "low", "text", "none"],
)
def test_what_is_no_table(world: World, table: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Tracer(world.authority).table(table, model="digits")


# --- models ------------------------------------------------------------------------


@pytest.fixture
def protect() -> Callable[..., Any]:
    """`protect(authority, trace_labels)`: a model of 12 ordinary labels, never trained."""

    def protect(authority: ke.Authority, trace_labels: int = 8) -> tuple[Any, LabelAssignment]:
        assignment = LabelAssignment.draw(3, 4, trace_labels, 1024)
        metadata = ModelMetadata(model="cats", class_names=["tabby", "siam", "manx"])
        return authority.model_store.add_model(metadata, assignment), assignment

    return protect


@dataclass
class Named:
    """All that tracing looks at in a model."""

    codebook: str


@pytest.mark.parametrize("trace_labels", [0, 8])
def test_models_without_trace_inputs(authority: Any, protect: Any, trace_labels: int) -> None:
    protect(authority, trace_labels)
    with pytest.raises(LedgerError, match=r"'cats' has no trace inputs: it was not trained yet"):
        Tracer(authority).service(lambda batch: [0] * len(batch), model="cats")


@pytest.mark.parametrize("trace_labels", [0, 8])
@pytest.mark.parametrize("users", [0, 2])
def test_tables_that_tell_nobody_apart(
    authority: Any, protect: Any, trace_labels: int, users: int
) -> None:
    authority.enroll(f"user {i}" for i in range(users))
    _, assignment = protect(authority, trace_labels)
    report = Tracer(authority).table(np.zeros(assignment.num_labels, int), model="cats")
    assert (report.verdict, report.tested) == ("inconclusive", users)


def test_unknown_models(authority: Any, protect: Any, create: Any, tmp_path: Path) -> None:
    table = np.zeros(3, int)
    with pytest.raises(LedgerError, match=r"has no model 'dogs'\. It has: none"):
        Tracer(authority).table(table, model="dogs")
    protect(authority)
    protect(authority)
    for trace in (Tracer(authority).table, Tracer(authority).service):
        with pytest.raises(LedgerError, match=r"has no model 'dogs'\. It has: 'cats'\."):
            trace(table, model="dogs")
        for wrong in (None, 3, keras.Sequential()):
            with pytest.raises(ArgumentError, match="`model` must be a protected model or its"):
                trace(table, model=wrong)
    other = create(f"sqlite:///{tmp_path}/other.authority")
    codebook, _ = protect(other)
    with pytest.raises(LedgerError, match="did not protect this model"):
        Tracer(authority).table(table, model=Named(codebook.to_bytes().decode()))


def test_a_name_that_recurs_is_the_newest(authority: Any, protect: Any, issue: Any) -> None:
    issue(authority, "alice")
    old, old_assignment = protect(authority, 96)
    _, new_assignment = protect(authority, 64)
    lengths = old_assignment.num_labels, new_assignment.num_labels
    assert lengths[0] != lengths[1]
    Tracer(authority).table(np.zeros(lengths[1], int), model="cats")
    with pytest.raises(ArgumentError, match=f"must hold {lengths[1]} integers"):
        Tracer(authority).table(np.zeros(lengths[0], int), model="cats")
    path = Path(authority.ledger.url.database).with_name("alice.keybundle")
    table = old.decode_table(KeyBundle.read(path).unlock(PASSPHRASE).reader)
    report = Tracer(authority).table(table, model=Named(old.to_bytes().decode()))
    assert names(report) == ["alice"]
