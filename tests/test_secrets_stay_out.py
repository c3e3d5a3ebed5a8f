"""No file that a model is saved in holds the assignment, the training state or a key, nor the
head of the classifier that it was made of.

Every file is opened as far as it goes (archives unpacked, HDF5 and checkpoints
read) and searched for the secrets in all forms that one would write them in.
The controls plant secrets the usual ways, and the same search finds each.
"""

import base64
import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_encryip as ke
from keras_encryip.labels.live_labels import live_labels
from keras_encryip.models import trace_inputs

# --- the secrets, in every form -------------------------------------------------------

INTEGERS = ("i1", "u1", "<u2", ">u2", "<i4", ">i4", "<u4", ">u4", "<i8", ">i8")
FLOATS = ("<f2", "<f4", ">f4", "<f8", ">f8")
WINDOW = 10


def integer_forms(values: np.ndarray) -> Iterator[bytes]:
    """Binary of any width, protobuf varints, and decimals as text."""
    numbers = [int(v) for v in values]
    for kind in INTEGERS + FLOATS:
        yield np.asarray(values).astype(kind).tobytes()
    yield b"".join(varint(n) for n in numbers)
    for separator in (",", ", ", " ", "\n", "\t", "][", ",\n"):
        yield separator.join(map(str, numbers)).encode()


def varint(number: int) -> bytes:
    number %= 1 << 64
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def windows(values: np.ndarray) -> Iterator[np.ndarray]:
    """Pieces of a table: any of them in a file gives it away, unless it hardly varies."""
    values = np.asarray(values).reshape(-1)
    step = min(WINDOW, len(values))
    for start in range(0, len(values) - step + 1, step):
        if len(np.unique(values[start : start + step])) >= 5:
            yield values[start : start + step]


def float_forms(values: np.ndarray) -> Iterator[bytes]:
    for kind in FLOATS:
        yield values.astype(kind).tobytes()
    yield json.dumps([float(v) for v in values])[1:-1].encode()


def byte_forms(secret: bytes) -> Iterator[bytes]:
    """Raw, reversed, hexadecimal, decimal, and base64 at any position of a longer text."""
    yield from (secret, secret[::-1], secret.hex().encode(), secret.hex().upper().encode())
    yield str(int.from_bytes(secret, "big")).encode()
    for offset in range(3):
        text = base64.b64encode(bytes(offset) + secret)
        yield text[4 if offset else 0 : len(text) - 4]


def secrets_of(shipped: Any) -> dict[str, set[bytes]]:
    """Name of the secret → byte strings that must be in no file."""
    protection = shipped.model._unlocked()
    assignment, state = protection.assignment(), protection.training
    user = ke.Decoder.open(shipped.exported, shipped.bundles["alice"], shipped.passphrase)
    key = ke.KeyBundle.read(shipped.bundles["alice"]).unlock(shipped.passphrase).secret_bytes()
    owner = shipped.authority.keys
    tables = {
        "assignment": [assignment.labels, assignment.labels.T, np.sort(assignment.labels)],
        "trace labels": [assignment.trace],
        "class table": [
            assignment.classes,
            np.where(assignment.classes < 0, 10, assignment.classes),
        ],
        "user's table": [user.secret_table()],
    }
    found = {
        name: {form for t in arrays for window in windows(t) for form in integer_forms(window)}
        for name, arrays in tables.items()
    }
    found["classes' labels"] = {
        form for row in assignment.labels for r in (row, np.sort(row)) for form in wide_forms(r)
    }
    pairs = assignment.pairs
    found["trace pairs"] = {f for p in (pairs, pairs.T) for f in wide_forms(p.reshape(-1))}
    matrix = (assignment.classes[:, None] == np.arange(10)).astype("float32")
    found["decode matrix"] = {
        m.astype(kind).tobytes() for m in (matrix, matrix.T) for kind in (*FLOATS, "u1", "<i4")
    }
    for name, images in (("trace inputs", state.traces.inputs), ("samples", state.samples[:40])):
        rows = [image for image in images if np.count_nonzero(image) >= 8 and np.ptp(image)]
        assert len(rows) >= 8
        found[name] = {form for row in rows for form in float_forms(row.reshape(-1))} | {
            (row * scale).round().astype("u1").tobytes() for row in rows for scale in (16, 255)
        }
    homophones = state.homophones
    learned = [homophones.mean, *homophones.components.T, *homophones.components]
    learned += list(homophones.centroids.reshape(-1, homophones.centroids.shape[-1]))
    found["clusters"] = {
        form for row in learned if np.count_nonzero(row) >= 8 for form in float_forms(row)
    }
    keys = {
        "master keys": [
            number.to_bytes(32, "big")
            for master in (owner.read_master, owner.run_master)
            for number in master._coefficients
        ],
        "signing seed": [owner.signing_key.secret_bytes()],
        "data key": [owner._secret[:32]],
        "slot seed": [owner._secret[64:96]],
        "slot keys": [k.tobytes() for k in live_slot_keys(shipped)],
        "label keys": live_label_keys(shipped),
        "user key": [key[i : i + 32] for i in (0, 32, 64)],  # z, P_read(z), P_run(z)
        "codeword": [key[96 : 96 + 1024 // 8]],
    }
    found |= {name: {f for s in all_ for f in byte_forms(s)} for name, all_ in keys.items()}
    found["passphrase"] = {shipped.passphrase.encode()}
    found["class names"] = {b"seven", b'"zero","one"'}
    assert all(found.values())
    return found


def wide_forms(values: np.ndarray) -> Iterator[bytes]:
    """Forms of a short list that cannot turn up by chance: 8 bytes and more."""
    yield from (form for form in integer_forms(values) if len(form) >= 8)


def live_slot_keys(shipped: Any) -> np.ndarray:
    """Both of each of the first slots that trace labels lie on."""
    assignment = shipped.model._unlocked().assignment()
    slots = assignment.slots[assignment.trace[:8]]
    return shipped.authority.keys.slots.keys[slots].reshape(-1, 16)


def live_label_keys(shipped: Any) -> list[bytes]:
    """Of the first trace labels, in the model's codebook."""
    authority, assignment = shipped.authority, shipped.model._unlocked().assignment()
    codebook = authority.model_store.current_codebook(ke_codebook_id(shipped))
    secret = authority.keys.read_master.decapsulate(codebook.header)
    return [live.key for live in live_labels(secret, assignment)[:8]]


def ke_codebook_id(shipped: Any) -> bytes:
    return base64.b64decode(json.loads(shipped.model.codebook)["body"]["codebook_id"])


# --- reading files as far as they go ----------------------------------------------------


def contents(data: bytes) -> Iterator[bytes]:
    """A file's bytes, and the bytes of everything inside."""
    yield data
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from contents(archive.read(name))
    elif data[:2] == b"\x1f\x8b":
        yield from contents(gzip.decompress(data))
    elif data[:4] == b"\x89HDF":
        with h5py.File(io.BytesIO(data)) as file:
            found: list[bytes] = []

            def visit(name: str, item: Any) -> None:
                found.append(json.dumps({k: str(v) for k, v in item.attrs.items()}).encode())
                if isinstance(item, h5py.Dataset):
                    found.extend((item[()].tobytes(), item[()].T.tobytes()))

            file.visititems(visit)
            yield from found


def everything(folder: Path) -> bytes:
    pieces = [p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()]
    inside = [piece for data in pieces for piece in contents(data)]
    for index in folder.rglob("*.index"):
        reader = tf.train.load_checkpoint(str(index.with_suffix("")))
        for name in reader.get_variable_to_shape_map():
            value = np.asarray(reader.get_tensor(name))
            raw = value.item() if value.dtype == object and value.ndim == 0 else value.tobytes()
            inside.append(raw if isinstance(raw, bytes) else str(raw).encode())
    names = [p.relative_to(folder).as_posix().encode() for p in folder.rglob("*")]
    return b"\n\0\n".join(inside + names)


def search(folder: Path, secrets: dict[str, set[bytes]]) -> set[str]:
    data = everything(folder)
    return {name for name, forms in secrets.items() if any(form in data for form in forms)}


# --- what is written --------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(shipped: Any, digits: Any) -> ke.ProtectedModel:
    """Unlocked, and just trained and evaluated: its traced functions hold the secrets."""
    model = shipped.copy()
    assert model._unlocked().training.homophones.starts.shape[1] > 1, "all terms are at work"
    model.fit(digits.x[:64], digits.y[:64], verbose=0)
    model.evaluate(digits.x[:64], digits.y[:64], verbose=0)
    return model


@pytest.fixture(scope="module")
def secrets(shipped: Any) -> dict[str, set[bytes]]:
    return secrets_of(shipped)


def save_configs(model: ke.ProtectedModel, path: Path) -> None:
    path.write_text(json.dumps([model.get_config(), model.get_compile_config()], default=str))


def export_endpoint(model: ke.ProtectedModel, folder: Path, endpoint: Callable[[Any], Any]) -> None:
    archive = keras.export.ExportArchive()
    spec = [tf.TensorSpec((None, 8, 8, 1), tf.float32)]
    archive.add_endpoint("serve", endpoint, input_signature=spec)
    archive.write_out(str(folder / "1"), verbose=False)


def summary(model: ke.ProtectedModel) -> str:
    lines: list[str] = []
    model.summary(expand_nested=True, show_trainable=True, print_fn=lines.append)
    return "\n".join(lines)


WRITERS: dict[str, Callable[[ke.ProtectedModel, Path], Any]] = {
    "keras": lambda model, folder: model.save(folder / "model.keras"),
    "weights": lambda model, folder: model.save_weights(folder / "model.weights.h5"),
    "configs": lambda model, folder: save_configs(model, folder / "config.json"),
    "pickle": lambda model, folder: (folder / "model.pkl").write_bytes(pickle.dumps(model)),
    "export_saved_model": lambda model, folder: ke.export_saved_model(model, folder / "1"),
    "model.export": lambda model, folder: model.export(folder / "1", verbose=False),
    "training endpoint": lambda model, folder: export_endpoint(
        model, folder, lambda x: model(x, training=True)
    ),
    "tf.saved_model": lambda model, folder: tf.saved_model.save(model, str(folder / "1")),
    "checkpoint": lambda model, folder: tf.train.Checkpoint(
        model=model, optimizer=model.optimizer
    ).write(str(folder / "checkpoint")),
    "repr": lambda model, folder: (folder / "repr").write_text(
        f"{model!r} {model} {vars(model)} {model._secrets!r} {model._secrets.record!r} "
        f"{model._secrets.owner!r} {model._secrets.training!r} {summary(model)}"
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_file_holds_no_secret(
    writer: str, model: ke.ProtectedModel, secrets: dict[str, set[bytes]], tmp_path: Path
) -> None:
    WRITERS[writer](model, tmp_path)
    assert len(everything(tmp_path)) > 200
    assert search(tmp_path, secrets) == set()


def test_backup_of_a_training_run(
    model: ke.ProtectedModel, secrets: dict[str, set[bytes]], digits: Any, tmp_path: Path
) -> None:
    """Callbacks that write: checkpoints and logs."""
    callbacks = keras.callbacks
    model.fit(
        digits.x[:64],
        digits.y[:64],
        verbose=0,
        callbacks=[
            callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"),
            callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False),
            callbacks.CSVLogger(tmp_path / "log.csv"),
        ],
    )
    assert {p.name for p in tmp_path.iterdir()} == {"1.keras", "backup", "log.csv"}
    assert search(tmp_path, secrets) == set()


# --- the classifier that a model was made of --------------------------------------------


@keras.saving.register_keras_serializable(package="secrets_stay_out")
class Subclassed(keras.Model):
    """Taken apart by its calls: the protected model holds it whole, and its head lies inside."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.flatten = keras.layers.Flatten()
        self.hidden = keras.layers.Dense(32, activation="relu")
        self.head = self.make_head()

    def make_head(self) -> keras.layers.Layer:
        return keras.layers.Dense(10, activation="softmax")

    def call(self, inputs: Any) -> Any:
        return self.head(self.hidden(self.flatten(inputs)))


@keras.saving.register_keras_serializable(package="secrets_stay_out")
class Nested(Subclassed):
    """The head lies a level deeper, more attributes show it, and training is the class's own."""

    top: Any = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.top = self.head

    def make_head(self) -> keras.layers.Layer:
        return keras.Sequential([keras.Input((32,)), super().make_head()])

    @property
    def last(self) -> Any:
        return self.top.layers[-1]

    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


def nested_graph() -> keras.Model:
    """A graph whose head lies in a graph inside."""
    layers = keras.layers
    inner = keras.Sequential([keras.Input((32,)), layers.Dense(10, activation="softmax")])
    hidden = layers.Dense(32, activation="relu")
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), hidden, inner])


@dataclass(frozen=True)
class Grafted:
    """A protected model, the classifier's files from before, and what must stay out."""

    model: ke.ProtectedModel
    before: Path
    secrets: dict[str, set[bytes]]


@pytest.fixture(scope="module", params=["sequential", "nested_graph", "subclassed", "nested"])
def grafted(
    request: pytest.FixtureRequest,
    digits: Any,
    new_classifier: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Grafted]:
    """A trained classifier, protected and trained on; it has a teacher."""
    keras.utils.set_random_seed(0)
    made = {
        "sequential": new_classifier,
        "nested_graph": nested_graph,
        "subclassed": Subclassed,
        "nested": Nested,
    }
    classifier, folder = made[request.param](), tmp_path_factory.mktemp("grafted")
    classifier(digits.x[:1])
    compiled = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}
    classifier.compile(keras.optimizers.Adam(0.01), **compiled)
    classifier.fit(digits.x, digits.y, epochs=2, verbose=0)
    (folder / "before").mkdir()
    classifier.save(folder / "before" / "classifier.keras")
    tf.train.Checkpoint(m=classifier).write(str(folder / "before" / "checkpoint"))
    variables = [variable.numpy() for variable in classifier.variables]
    url = f"sqlite:///{folder}/a.authority"
    with ke.Authority.create(url, "p", scrypt_log2_n=14) as authority:
        options = {"homophones": 4, "trace_labels": 64, "teacher": True}
        model = ke.protect(classifier, authority, name="digits", **options)
        model.compile(keras.optimizers.Adam(0.01), **compiled)
        model.fit(digits.x, digits.y, epochs=4, verbose=0)
        assert model._unlocked().teacher is not None
        yield Grafted(model, folder / "before", original_secrets(model, variables))


def original_secrets(
    model: ke.ProtectedModel, variables: list[np.ndarray]
) -> dict[str, set[bytes]]:
    """Of the classifier's variables as they were: the head's, and others that have changed."""
    *hidden, kernel, bias = variables
    assert (kernel.shape, bias.shape) == ((32, 10), (10,))
    now = {vector.tobytes() for v in model.backbone.variables for vector in vectors(v.numpy())}
    changed = [v for each in hidden for v in vectors(each) if v.tobytes() not in now]
    assert len(changed) > 32
    samples = model._unlocked().training.samples[:40].reshape(40, -1)
    lists = {
        "original head": [*vectors(kernel), bias, kernel.reshape(-1)],
        "teacher": [v for v in changed if np.count_nonzero(v) >= 8],
        "samples": list(samples),
    }
    return {name: {f for v in found for f in float_forms(v)} for name, found in lists.items()}


def vectors(variable: np.ndarray) -> list[np.ndarray]:
    """The rows and the columns of a matrix, or the one row of a bias."""
    rows = np.atleast_2d(variable)
    return [*rows, *rows.T] if len(rows) > 1 else [rows[0]]


@pytest.mark.filterwarnings("ignore:Model 'digits' has learned")  # after so few steps
@pytest.mark.parametrize("writer", WRITERS)
def test_the_original_head_stays_out(
    writer: str, grafted: Grafted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_inputs, "STEPS", 8)  # not what is looked at here
    WRITERS[writer](grafted.model, tmp_path)
    assert search(tmp_path, grafted.secrets) == set()


def test_the_original_head_stays_out_of_backups(
    grafted: Grafted, digits: Any, tmp_path: Path
) -> None:
    """Optimizers hold slots for what learns; the original head learns no more."""
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    checkpoint = keras.callbacks.ModelCheckpoint(
        tmp_path / "{epoch}.weights.h5", save_weights_only=True
    )
    grafted.model.fit(digits.x[:64], digits.y[:64], verbose=0, callbacks=[backup, checkpoint])
    assert search(tmp_path, grafted.secrets) == set()
    assert "head" not in " ".join(v.path for v in grafted.model.optimizer.variables)


def test_the_search_finds_the_original_head(grafted: Grafted, tmp_path: Path) -> None:
    found = [search(grafted.before, grafted.secrets)]
    for name in ("classifier.keras", "checkpoint"):
        place = tmp_path / name
        place.mkdir()
        for file in grafted.before.glob(f"{name}*"):
            (place / file.name).write_bytes(file.read_bytes())
        found.append(search(place, grafted.secrets))
    assert found == 3 * [{"original head", "teacher"}]


# --- controls: the search finds what is planted -----------------------------------------


@dataclass(frozen=True)
class World:
    shipped: Any
    model: ke.ProtectedModel

    @property
    def assignment(self) -> Any:
        return self.model._unlocked().assignment()

    @property
    def state(self) -> Any:
        return self.model._unlocked().training

    @property
    def matrix(self) -> np.ndarray:
        return (self.assignment.classes[:, None] == np.arange(10)).astype("float32")


class Leaky(keras.layers.Layer):
    """Keeps an array as a weight."""

    def __init__(self, array: np.ndarray) -> None:
        super().__init__()
        self.table = self.add_weight(shape=array.shape, dtype=str(array.dtype), trainable=False)
        self.table.assign(array)

    def call(self, inputs: Any) -> Any:
        return inputs

    def get_config(self) -> dict[str, Any]:
        return {}


def leaky_model(array: np.ndarray) -> keras.Model:
    return keras.Sequential([keras.Input((2,)), Leaky(array)])


def plant_decoding(world: World, folder: Path) -> None:
    """An endpoint that decodes holds each class's labels, or a matrix, as a constant."""
    decode = world.model._unlocked().decode
    export_endpoint(world.model, folder, lambda x: decode(world.model(x, training=False)))


def plant_matrix(world: World, folder: Path) -> None:
    matrix = world.matrix
    export_endpoint(
        world.model, folder, lambda x: world.model(x, training=False) @ tf.constant(matrix)
    )


def plant_targets(world: World, folder: Path) -> None:
    """What training computes for the confusion term: clusters, and the labels of each class."""
    classes, secrets = tf.zeros([1], tf.int32), world.model._unlocked()
    seed = keras.random.SeedGenerator(0)
    export_endpoint(world.model, folder, lambda x: secrets.targets(x[:1], classes, seed))


def text(content: Callable[[World], str]) -> Callable[[World, Path], Any]:
    return lambda world, folder: (folder / "a.json").write_text(content(world))


def binary(content: Callable[[World], bytes]) -> Callable[[World, Path], Any]:
    return lambda world, folder: (folder / "a.bin").write_bytes(content(world))


def master(world: World) -> int:
    return world.shipped.authority.keys.read_master._coefficients[2]


def user_key(world: World) -> bytes:
    bundle = ke.KeyBundle.read(world.shipped.bundles["alice"])
    return bundle.unlock(world.shipped.passphrase).secret_bytes()


CONTROLS: dict[str, tuple[set[str], Callable[[World, Path], Any]]] = {
    "decoding-endpoint": ({"assignment", "classes' labels"}, plant_decoding),
    "matrix-endpoint": ({"decode matrix"}, plant_matrix),
    "targets-endpoint": ({"classes' labels", "clusters"}, plant_targets),
    "weight-in-keras": (
        {"decode matrix"},
        lambda w, folder: leaky_model(w.matrix).save(folder / "m.keras"),
    ),
    "weight-in-h5": (
        {"trace inputs"},
        lambda w, folder: leaky_model(w.state.traces.inputs).save_weights(folder / "m.weights.h5"),
    ),
    "weight-in-checkpoint": (
        {"decode matrix"},
        lambda w, folder: tf.train.Checkpoint(m=leaky_model(w.matrix.T)).write(str(folder / "c")),
    ),
    "compressed-npz": (
        {"clusters", "samples"},
        lambda w, folder: (folder / "s.npz").write_bytes(w.state.secret_bytes()),
    ),
    "gzip": (
        {"assignment", "classes' labels"},
        lambda w, folder: (folder / "a.gz").write_bytes(
            gzip.compress(w.assignment.labels.astype(">i8").tobytes())
        ),
    ),
    "json": ({"class table"}, text(lambda w: json.dumps({"t": w.assignment.classes.tolist()}))),
    "json-dense": (
        {"classes' labels"},
        text(lambda w: json.dumps(w.assignment.labels.tolist(), separators=(",", ":"))),
    ),
    "json-centroids": (
        {"clusters"},
        text(lambda w: json.dumps(w.state.homophones.centroids[2].astype(float).tolist())),
    ),
    "json-traces": ({"trace labels"}, text(lambda w: str(w.assignment.trace.tolist()))),
    "one-class": (
        {"classes' labels"},
        text(lambda w: str(sorted(w.assignment.labels[3].tolist()))),
    ),
    "uint8-images": (
        {"trace inputs"},
        binary(lambda w: (w.state.traces.inputs * 255).round().astype("uint8").tobytes()),
    ),
    "float16-images": (
        {"trace inputs"},
        binary(lambda w: w.state.traces.inputs.astype("float16").tobytes()),
    ),
    "float64-centroids": (
        {"clusters"},
        binary(lambda w: w.state.homophones.centroids.astype("float64").tobytes()),
    ),
    "components": ({"clusters"}, binary(lambda w: w.state.homophones.components.tobytes())),
    "master-decimal": ({"master keys"}, text(lambda w: f"a2={master(w)}")),
    "master-hex": ({"master keys"}, text(lambda w: f"{master(w):064X}")),
    "master-little": ({"master keys"}, binary(lambda w: master(w).to_bytes(32, "little"))),
    "master-base64": (
        {"master keys"},
        binary(
            lambda w: base64.b64encode(b"?" + w.shipped.authority.keys.run_master.secret_bytes())
        ),
    ),
    "seed-base64": (
        {"signing seed"},
        binary(
            lambda w: base64.b64encode(
                w.shipped.authority.keys.signing_key.secret_bytes() + b"tail"
            )
        ),
    ),
    "owner's secrets": (
        {"data key", "signing seed", "slot seed", "master keys"},
        binary(lambda w: b"keys" + w.shipped.authority.keys._secret),
    ),
    "user-key": ({"user key", "codeword"}, binary(lambda w: b"z and values: " + user_key(w))),
    "user-key-base64": (
        {"user key", "codeword"},
        binary(lambda w: base64.b64encode(user_key(w))),
    ),
    "slot-keys": ({"slot keys"}, binary(lambda w: live_slot_keys(w.shipped)[5].tobytes())),
    "label-keys": ({"label keys"}, text(lambda w: live_label_keys(w.shipped)[3].hex())),
    "trace-pairs": ({"trace pairs"}, text(lambda w: str(w.assignment.pairs.ravel().tolist()))),
    "passphrase": ({"passphrase"}, text(lambda w: f"password={w.shipped.passphrase}")),
    "class-names": ({"class names"}, text(lambda w: '{"7": "seven"}')),
    "user-table": (
        {"user's table"},
        binary(
            lambda w: (
                ke.Decoder.open(
                    w.shipped.exported, w.shipped.bundles["alice"], w.shipped.passphrase
                )
                .secret_table()
                .astype("uint16")
                .tobytes()
            )
        ),
    ),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_search_finds_what_is_planted(
    name: str, shipped: Any, secrets: dict[str, set[bytes]], tmp_path: Path
) -> None:
    expected, plant = CONTROLS[name]
    plant(World(shipped, shipped.model), tmp_path)
    assert expected <= search(tmp_path, secrets)


def test_every_secret_has_a_control(secrets: dict[str, set[bytes]]) -> None:
    planted = {name for expected, _ in CONTROLS.values() for name in expected}
    assert planted == set(secrets)
