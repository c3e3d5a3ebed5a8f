"""What docstring examples may use without saying where it comes from.

All have `np`, and `folder`, of their own. What else there is depends on the module.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

import keras_encryip as ke
from keras_encryip.formats.lock import FILE_NAME
from keras_encryip.formats.version_folder import ASSETS, read_codebook
from keras_encryip.tracing.fingerprint import embed
from keras_encryip.tracing.weights import kernels_of

Get = Callable[[str], Any]
"""From a fixture's name to its value."""


def names_for(example: str, get: Get) -> dict[str, Any]:
    """The names for one docstring, by its full name."""
    names: dict[str, Any] = {"np": np, "folder": get("tmp_path")}
    for modules, more in _NAMES.items():
        if example.startswith(modules):
            names |= more(get, names["folder"])
    return names


def _exported(get: Get, folder: Path) -> dict[str, Any]:
    """`digits/1` and `alice.keybundle` in `folder`."""
    shipped = get("shipped")
    shutil.copytree(shipped.exported, folder / "digits" / "1")
    shutil.copy(shipped.bundles["alice"], folder)
    return {}


def _reading(get: Get, _: Path) -> dict[str, Any]:
    """Outputs of classes 7, 2 and 1, and their ciphertexts; alice's bundle and her decoder."""
    shipped = get("shipped")
    labels = shipped.model._unlocked().assignment().labels
    codebook = read_codebook(shipped.exported)
    return {
        "confused": get("confused"),
        "ciphertexts": [codebook.ciphertext(int(labels[k][0])) for k in (7, 2, 1)],
        "decoder": _decoder(get),
        "bundle": ke.KeyBundle.read(shipped.bundles["alice"]),
    }


def _decoder(get: Get) -> ke.Decoder:
    shipped = get("shipped")
    return ke.Decoder.open(shipped.exported, shipped.bundles["alice"], shipped.passphrase)


def _locked(get: Get, folder: Path) -> dict[str, Any]:
    """A folder `locked/1` with a lock, and no weights."""
    shipped = get("shipped")
    shutil.copytree(shipped.exported / ASSETS, folder / "locked" / "1" / ASSETS)
    codebook = read_codebook(shipped.exported)
    lock, _ = shipped.authority.model_store.make_lock(codebook, "/run/secrets/encryip/digits.key")
    (folder / "locked" / "1" / ASSETS / FILE_NAME).write_bytes(lock.to_bytes())
    return {}


def _sealed(get: Get, folder: Path) -> dict[str, Any]:
    """A file `digits.sealed`."""
    shipped = get("shipped")
    ke.seal_folder(shipped.authority, shipped.exported, folder / "digits.sealed", model="digits")
    return {"bundle": shipped.bundles["alice"], "verify_export": ke.verify_export}


def _served(get: Get, _: Path) -> dict[str, Any]:
    """A server at `url`, and `images` that the model takes for 7, 2 and 1."""
    digits, decoder = get("digits"), _decoder(get)
    found = decoder.labels(get("shipped").model.predict(digits.x_test, verbose=0))
    right = np.where(found == digits.y_test, found, -1).tolist()
    images = digits.x_test[[right.index(label) for label in (7, 2, 1)]]
    return {"url": get("model_server").rest_url, "decoder": decoder, "images": images}


def _owning(get: Get, _: Path) -> dict[str, Any]:
    """An authority with the model "digits" and three users, whom a docstring may revoke."""
    bundle = ke.KeyBundle.read(get("shipped").bundles["alice"])
    return {"authority": get("own_authority"), "bundle": bundle, "Decoder": ke.Decoder}


def _exporting(get: Get, _: Path) -> dict[str, Any]:
    """The trained model itself."""
    return {"model": get("shipped").model}


def _leaking(get: Get, folder: Path) -> dict[str, Any]:
    """What alice leaked, in every form."""
    shipped, authority, decoder = get("shipped"), get("own_authority"), _decoder(get)
    store, codebook = authority.model_store, read_codebook(shipped.exported)
    keys = ke.KeyBundle.read(shipped.bundles["alice"]).unlock(shipped.passphrase)
    kernels = [np.asarray(kernel) for kernel in kernels_of(shipped.model)]
    authority.export_store.add_export(
        codebook, b"", folder="2", recipient=keys.key_id, kernels=kernels
    )
    mark = authority.keys.fingerprint_key(store.model_named("digits").model_id, keys.key_id)

    def suspicious_service(images: np.ndarray) -> np.ndarray:
        return decoder.labels(shipped.model.predict(images, verbose=0))

    return {
        "model": shipped.model,
        "leaked_key": keys.reader.point,
        "leaked_table": decoder.secret_table(),
        "leaked_kernels": embed(kernels, mark),
        "combined_weights": keys.reader.point.secret_weights(codebook.header.nodes),
        "nodes": codebook.header.nodes,
        "suspicious_service": suspicious_service,
    }


def _reported(get: Get, folder: Path) -> dict[str, Any]:
    """Reports on alice's bundle, opened and sealed, and the folder `evidence` against her."""
    shipped, authority = get("shipped"), get("own_authority")
    tracer, bundle = ke.Tracer(authority), shipped.bundles["alice"]
    report = tracer.bundle(bundle, shipped.passphrase)
    tracer.evidence(report, folder / "evidence")
    return {"authority": authority, "report": report, "sealed_report": tracer.bundle(bundle)}


def _protecting(get: Get, _: Path) -> dict[str, Any]:
    """A classifier to protect, and data for it."""
    digits, made = get("digits"), get("new_classifier")()
    own = get("shared_authority")
    return {"classifier": made, "x": digits.x, "y": digits.y, "authority": own}


def _trained(get: Get, folder: Path) -> dict[str, Any]:
    """A protected model, `digits.keras` in `folder`, loaded, unlocked and compiled."""
    shipped, own = get("shipped"), get("own_authority")
    shutil.copy(shipped.saved, folder)
    return {"authority": own, "model": shipped.copy(unlock=False).unlock(authority=own)}


_NAMES: Final[dict[str | tuple[str, ...], Callable[[Get, Path], dict[str, Any]]]] = {
    (
        "keras_encryip.authority.seal_folder",
        "keras_encryip.authority.tracer",
        "keras_encryip.client",
        "keras_encryip.errors",
        "keras_encryip.export.rotate",
        "keras_encryip.formats.key_bundle",
        "keras_encryip.formats.manifest",
        "keras_encryip.formats.sealed_folder",
        "keras_encryip.models.lockable",
    ): _exported,
    (
        "keras_encryip.client",
        "keras_encryip.formats.key_bundle",
        "keras_encryip.formats.manifest",
    ): _reading,
    "keras_encryip.client.unlock_key": _locked,
    "keras_encryip.client.serving": _served,
    "keras_encryip.formats.sealed_folder": _sealed,
    (
        "keras_encryip.authority.authority",
        "keras_encryip.authority.seal_folder",
        "keras_encryip.authority.tracer",
        "keras_encryip.export.rotate",
    ): _owning,
    "keras_encryip.export.saved_model": _exporting,
    "keras_encryip.authority.tracer": _leaking,
    (
        "keras_encryip.tracing.report",
        "keras_encryip.tracing.verify_evidence",
    ): _reported,
    "keras_encryip.models": _protecting,
    (
        "keras_encryip.models.lockable",
        "keras_encryip.models.protected_model",
        "keras_encryip.models.protection_metrics.ProtectionMetrics.measure",
    ): _trained,
}
"""By what a docstring's full name starts with; the later add to the earlier."""
