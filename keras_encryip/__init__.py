"""Protect Keras classifiers: confused labels, and keys for any number of traceable users.

`models`     training: `protect` makes a `ProtectedModel` of a classifier
`export`     writes protected models for TF Serving and other runtimes, and rotates them
`authority`  the owner's secrets and ledger: `Authority` issues keys, `Tracer` finds leakers
`tracing`    statistics, fingerprints and evidence, without the ledger
`client`     what an application needs: `Decoder`, `serving.ServingClient`; no TensorFlow
`formats`    the files that both sides read and write: bundles, manifests, sealed folders
`labels`     confused labels: assignment, codebook, ciphertext
`crypto`     the key encapsulation and what it is made of

Names below are loaded on first use, because the owner's side imports Keras and SQLAlchemy.
"""

import importlib
from typing import TYPE_CHECKING, Final

from keras_encryip.registration import register_keras_classes

if TYPE_CHECKING:
    from keras_encryip.authority.authority import Authority as Authority
    from keras_encryip.authority.seal_folder import seal_folder as seal_folder
    from keras_encryip.authority.tracer import Tracer as Tracer
    from keras_encryip.client.decoder import Decoder as Decoder
    from keras_encryip.errors import EncryipError as EncryipError
    from keras_encryip.export.rotate import rotate_codebook as rotate_codebook
    from keras_encryip.export.saved_model import export_saved_model as export_saved_model
    from keras_encryip.formats.key_bundle import KeyBundle as KeyBundle
    from keras_encryip.formats.key_pair import X25519PrivateKey as X25519PrivateKey
    from keras_encryip.formats.key_pair import X25519PublicKey as X25519PublicKey
    from keras_encryip.formats.manifest import verify_export as verify_export
    from keras_encryip.formats.sealed_folder import unseal_folder as unseal_folder
    from keras_encryip.models.head import ConfusedLabels as ConfusedLabels
    from keras_encryip.models.losses import ConfusedLabelCrossentropy as ConfusedLabelCrossentropy
    from keras_encryip.models.protect import protect as protect
    from keras_encryip.models.protected_model import ProtectedModel as ProtectedModel
    from keras_encryip.models.protection_metrics import ProtectionMetrics as ProtectionMetrics
    from keras_encryip.tracing.report import TraceReport as TraceReport
    from keras_encryip.tracing.verify_evidence import verify_evidence as verify_evidence

__version__ = "0.4.0"

_HOMES: Final = {
    "Authority": "authority.authority",
    "ConfusedLabelCrossentropy": "models.losses",
    "ConfusedLabels": "models.head",
    "Decoder": "client.decoder",
    "EncryipError": "errors",
    "KeyBundle": "formats.key_bundle",
    "ProtectedModel": "models.protected_model",
    "ProtectionMetrics": "models.protection_metrics",
    "TraceReport": "tracing.report",
    "Tracer": "authority.tracer",
    "X25519PrivateKey": "formats.key_pair",
    "X25519PublicKey": "formats.key_pair",
    "export_saved_model": "export.saved_model",
    "protect": "models.protect",
    "rotate_codebook": "export.rotate",
    "seal_folder": "authority.seal_folder",
    "unseal_folder": "formats.sealed_folder",
    "verify_evidence": "tracing.verify_evidence",
    "verify_export": "formats.manifest",
}

__all__ = [*_HOMES]

if not TYPE_CHECKING:  # type checkers and editors read the imports above: a typo is an error

    def __getattr__(name: str) -> object:
        if name in _HOMES:
            from keras_encryip.errors import needing

            with needing("owner"):
                return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted([*globals(), *_HOMES])


register_keras_classes()
