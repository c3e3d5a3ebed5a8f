"""Weights from anywhere: reading, pairing, and undoing permutations of units."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from keras_encryip.errors import ArgumentError, FormatError
from keras_encryip.tracing import weights
from keras_encryip.tracing.alignment import align, match
from keras_encryip.tracing.fingerprint import correlate, embed, whiten
from keras_encryip.tracing.weights import kernels_of, read_kernels

KEY = bytes(range(32))


def same(found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    """The same arrays, in whatever order."""
    left = list(found)
    for array in wanted:
        at = [i for i, other in enumerate(left) if np.array_equal(other, array)]
        if not at:
            return False
        del left[at[0]]
    return not left


@pytest.fixture
def arrays() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    shapes = [(3, 3, 4, 16), (64, 32), (32, 32), (32, 32), (32, 10)]
    return [random.standard_normal(shape).astype("float32") for shape in shapes]


# --- reading -----------------------------------------------------------------


def test_kernels_of_a_model(shipped: Any) -> None:
    kernels = kernels_of(shipped.model)
    assert [tuple(k.shape) for k in kernels] == [(64, 32), (32, shipped.model.num_labels)]


def test_every_form_of_the_shipped_model(shipped: Any, tmp_path: Path) -> None:
    wanted = [k.numpy() for k in kernels_of(shipped.model)]
    shipped.model.save_weights(tmp_path / "digits.weights.h5")
    np.savez(tmp_path / "digits.npz", *shipped.model.get_weights())
    np.save(tmp_path / "one.npy", wanted[0])
    for source in (
        shipped.exported,
        str(shipped.exported),
        shipped.saved,
        tmp_path / "digits.weights.h5",
        tmp_path / "digits.npz",
        shipped.model,
        shipped.model.get_weights(),
        tuple(shipped.model.get_weights()),
        {str(i): w for i, w in enumerate(shipped.model.get_weights())},
    ):
        found = read_kernels(source)
        assert same(found, wanted), source
        assert all(array.dtype == np.float32 for array in found)
    for source in (tmp_path / "one.npy", wanted[0]):
        assert same(read_kernels(source), wanted[:1])


def test_an_optimizers_slots_are_not_the_models(digits: Any, tmp_path: Path) -> None:
    import keras
    import tensorflow as tf

    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    model.compile("adam", "mse")
    model.fit(digits.x[:32].reshape(32, 64), np.zeros((32, 10)), verbose=0)
    model.save(tmp_path / "model.keras")
    tf.saved_model.save(model, str(tmp_path / "saved"))
    for name in ("model.keras", "saved"):
        assert same(read_kernels(tmp_path / name), [model.layers[0].kernel.numpy()])


def test_kernels_of_equal_shape_stay_in_order(tmp_path: Path) -> None:
    """What pairing without the original rests on."""
    import keras

    layers = [keras.layers.Dense(4) for _ in range(12)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.save(tmp_path / "model.keras")
    model.export(tmp_path / "exported", verbose=False)
    for name in ("model.keras", "exported"):
        found = read_kernels(tmp_path / name)
        for array, kernel in zip(found, kernels_of(model), strict=True):
            np.testing.assert_array_equal(array, kernel.numpy())


def test_quantised_and_half_precision_values(tmp_path: Path) -> None:
    import ml_dtypes

    values = np.arange(-6, 6).reshape(3, 4)
    for dtype in ("int8", "uint8", "int16", "float16", "float64", ml_dtypes.bfloat16):
        array = np.abs(values).astype(dtype)
        np.savez(tmp_path / "some.npz", array)
        for source in ([array], tmp_path / "some.npz"):
            (found,) = read_kernels(source)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, np.abs(values))


def test_kernels_keep_the_order_of_numbers(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "many.weights.h5", "w") as file:
        for i in range(12):
            file[f"layers/dense_{i}/vars/0"] = np.full((2, 2), i, "float32")
    assert [k[0, 0] for k in read_kernels(tmp_path / "many.weights.h5")] == list(range(12))


def test_biases_counters_and_texts_are_left_out() -> None:
    wanted = np.ones((2, 2), "float32")
    others = [np.ones(3), np.ones((2, 2), "int64"), np.array([["a", "b"]]), np.zeros((0, 3))]
    assert same(read_kernels([*others, wanted, np.ones((2, 2), bool)]), [wanted])


@pytest.mark.parametrize("source", [None, 3, b"bytes", [], {}, [np.ones(3)], np.ones(3), [1, 2]])
def test_objects_without_weights(source: Any) -> None:
    with pytest.raises(ArgumentError):
        read_kernels(source)


def cut(path: Path, source: Path) -> None:
    data = source.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def write_pickle(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([[{}, []]], dtype=object), allow_pickle=True)


def write_zip(path: Path, name: str, data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, data)


def write_huge(path: Path) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 28, 1 << 28)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)


MALFORMED: dict[str, Callable[[Path, Any], Any]] = {
    "missing": lambda path, shipped: None,
    "empty": lambda path, shipped: path.write_bytes(b""),
    "text": lambda path, shipped: path.write_text("weights"),
    "cut .keras": lambda path, shipped: cut(path, shipped.saved),
    "keras without weights": lambda path, shipped: write_zip(path, "config.json", b"{}"),
    "keras with junk": lambda path, shipped: write_zip(path, "model.weights.h5", b"junk"),
    "hdf5 header only": lambda path, shipped: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64)),
    "npz with junk": lambda path, shipped: write_zip(path, "a.npy", b"\x93NUMPYjunk"),
    "pickle": lambda path, shipped: write_pickle(path),
    "npy that claims 256 PiB": lambda path, shipped: write_huge(path),
    "biases only": lambda path, shipped: path.write_bytes(save_bytes(np.ones(3))),
    "empty folder": lambda path, shipped: path.mkdir(),
}


def save_bytes(array: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_sources_are_named(name: str, shipped: Any, tmp_path: Path) -> None:
    path = tmp_path / "suspect"
    MALFORMED[name](path, shipped)
    with pytest.raises(FormatError, match="suspect"):
        read_kernels(path)


@pytest.mark.parametrize("part", ["variables.index", "variables.data-00000-of-00001"])
@pytest.mark.parametrize("keep", [0, 0.5])
def test_damaged_variables(part: str, keep: float, shipped: Any, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(shipped.exported, tmp_path / "suspect")
    file = tmp_path / "suspect" / "variables" / part
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(FormatError, match="suspect"):
        read_kernels(tmp_path / "suspect")


def test_weights_kept_in_other_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "private").write_bytes(bytes(64))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["kernel"] = np.ones((4, 4), "float32")
    with h5py.File(tmp_path / "suspect.h5", "w") as file:
        file["link"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "kernel")
        external = [(str(tmp_path / "private"), 0, 64)]
        file.create_dataset("external", (4, 4), "float32", external=external)
        layout = h5py.VirtualLayout((4, 4), "float32")
        layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "kernel", (4, 4))
        file.create_virtual_dataset("virtual", layout)
    with pytest.raises(FormatError, match="no array"):
        read_kernels(tmp_path / "suspect.h5")


def test_sizes_are_bounded(shipped: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MAX_BYTES", 100)
    shipped.model.save_weights(tmp_path / "a.weights.h5")
    np.savez(tmp_path / "a.npz", np.ones((10, 10)))
    np.save(tmp_path / "a.npy", np.ones((10, 10)))
    for source in (shipped.exported, shipped.saved, *tmp_path.iterdir()):
        with pytest.raises(FormatError, match="too large"):
            read_kernels(source)


# --- pairing -----------------------------------------------------------------


def test_match_in_any_order_and_scale(arrays: list[np.ndarray]) -> None:
    suspect = [-3 * a for a in reversed(arrays)]
    junk = np.random.default_rng(1).standard_normal((32, 32)).astype("float32")
    found = match([junk, *suspect, np.ones((2, 2))], arrays)
    for array, original in zip(found, arrays, strict=True):
        assert array is not None
        np.testing.assert_array_equal(array, -3 * original)


def test_match_leaves_out_what_is_missing(arrays: list[np.ndarray]) -> None:
    found = match([arrays[3], arrays[0]], arrays)
    assert [array is not None for array in found] == [True, False, False, True, False]
    assert found[3] is arrays[3]


def test_match_by_shape_keeps_the_order(arrays: list[np.ndarray]) -> None:
    found = match(arrays, [a.shape for a in arrays])
    assert all(a is b for a, b in zip(found, arrays, strict=True))


def test_match_without_likeness_keeps_the_order(arrays: list[np.ndarray]) -> None:
    random = np.random.default_rng(1)
    others = [random.permuted(a, axis=None) for a in arrays]
    others[0][...] = np.nan
    others[2][...] = 5
    found = match(others, arrays)
    assert all(a is b for a, b in zip(found, others, strict=True))


def test_another_architecture_is_refused(arrays: list[np.ndarray]) -> None:
    with pytest.raises(ArgumentError, match="architecture"):
        match([np.ones((5, 5))], arrays)
    with pytest.raises(ArgumentError, match="architecture"):
        match([], arrays)


# --- order of units ----------------------------------------------------------


def permuted(kernels: list[np.ndarray], *, scales: bool = False) -> list[np.ndarray]:
    """Hidden units in another order, and rescaled: a sequential model's outputs stay."""
    random = np.random.default_rng(3)
    kernels = [kernel.copy() for kernel in kernels]
    for i in range(len(kernels) - 1):
        units = kernels[i].shape[-1]
        order = random.permutation(units)
        sizes = random.lognormal(0, 0.5 if scales else 0, units).astype("float32")
        kernels[i] = kernels[i][..., order] * sizes
        following = kernels[i + 1].reshape(-1, units, kernels[i + 1].shape[-1])
        following = following[:, order] / sizes[:, None]
        kernels[i + 1] = following.reshape(kernels[i + 1].shape)
    return kernels


def z_of(suspect: list[np.ndarray], reference: list[np.ndarray], *, aligned: bool = True) -> float:
    found = match(suspect, reference)
    return correlate(whiten(align(found, reference) if aligned else found, reference), KEY)


@pytest.mark.parametrize("scales", [False, True])
def test_permuted_units_are_put_back(scales: bool, arrays: list[np.ndarray]) -> None:
    marked = embed(arrays, KEY)
    most = z_of(marked, arrays)
    suspect = permuted(marked, scales=scales)
    assert abs(z_of(suspect, arrays, aligned=False)) < 8
    assert z_of(suspect, arrays) > (0.85 if scales else 0.98) * most


def test_permuted_noisy_and_quantised(arrays: list[np.ndarray]) -> None:
    random = np.random.default_rng(4)
    noisy = [a + 0.1 * random.standard_normal(a.shape) for a in embed(arrays, KEY, 0.03)]
    suspect = [np.round(a / np.abs(a).max() * 127) for a in permuted(noisy)]
    assert z_of(suspect, arrays) > 0.95 * z_of(noisy, arrays) > 15


def test_align_leaves_alone_what_is_in_order(arrays: list[np.ndarray]) -> None:
    random = np.random.default_rng(4)
    tuned = [a + random.standard_normal(a.shape).astype("float32") for a in arrays]
    for suspect in (embed(arrays, KEY), tuned):
        for before, after in zip(suspect, align(suspect, arrays), strict=True):
            assert after is before
    assert align([None] * len(arrays), arrays) == [None] * len(arrays)


def test_align_of_unrelated_weights_accuses_nobody(arrays: list[np.ndarray]) -> None:
    """Reordering looks at no key: however it fits the original, chance stays chance."""
    random = np.random.default_rng(5)
    others = [random.standard_normal(a.shape).astype("float32") for a in arrays]
    residual = whiten(align(others, arrays), arrays)
    z = np.array([correlate(residual, i.to_bytes(32, "big")) for i in range(1000)])
    assert abs(z.mean()) < 4.5 / 1000**0.5
    assert abs(z.std() - 1) < 4.5 / 2000**0.5
