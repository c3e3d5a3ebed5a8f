"""Protect Keras classifiers: confused labels, keys for any number of users.

The light client (`keras_encryip.client`) needs numpy and pycryptodome only. The
names below belong to the owner's side and are loaded on first use, because they
import TensorFlow.
"""

import importlib
from typing import Any

__version__ = "0.3.0"

_LAZY = {
    "Authority": "keras_encryip.authority.authority",
    "ConfusedLabelCrossentropy": "keras_encryip.models.losses",
    "ConfusedLabels": "keras_encryip.models.head",
    "Decoder": "keras_encryip.client.decoder",
    "EncryipError": "keras_encryip.errors",
    "KeyBundle": "keras_encryip.formats.key_bundle",
    "ProtectedModel": "keras_encryip.models",
    "TraceReport": "keras_encryip.tracing.report",
    "X25519PrivateKey": "keras_encryip.formats.key_pair",
    "X25519PublicKey": "keras_encryip.formats.key_pair",
    "export_saved_model": "keras_encryip.export",
    "protect": "keras_encryip.models",
    "rotate_codebook": "keras_encryip.export.rotate",
    "seal_folder": "keras_encryip.authority.seal_folder",
    "unseal_folder": "keras_encryip.formats.sealed_folder",
    "verify_evidence": "keras_encryip.tracing.verify_evidence",
    "verify_export": "keras_encryip.formats.manifest",
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
