"""An exported model's codebook and a few users' bundles, on disk."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_encryip.crypto.kem import MasterKey
from keras_encryip.crypto.signing import SigningKey
from keras_encryip.crypto.slots import SlotSecrets
from keras_encryip.formats.bundle_keys import BundleKeys
from keras_encryip.formats.key_bundle import make_bundle
from keras_encryip.formats.version_folder import ASSETS
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import FILE_NAME, Codebook, ModelMetadata

PASSPHRASE = "correct horse"


@dataclass(frozen=True)
class Authority:
    """Just enough of an authority to issue bundles and make codebooks."""

    read: MasterKey
    run: MasterKey
    slots: SlotSecrets
    signing_key: SigningKey
    issuer_name: str

    @property
    def digest(self) -> bytes:
        return self.read.public_key().digest

    def issue(self, *roles: str, z: int | None = None) -> BundleKeys:
        """Keys for both roles, or for those named; at a fresh z, or at `z`."""
        point = self.read.issue() if z is None else self.read.user_key(z)
        reads = not roles or "read" in roles
        return BundleKeys(
            point.z,
            read=point if reads else None,
            run=self.run.user_key(point.z) if not roles or "run" in roles else None,
            slots=self.slots.of_user(point.key_id) if reads else None,
        )

    def bundle(self, keys: BundleKeys, **changes: Any) -> bytes:
        fields = {
            "passphrase": PASSPHRASE,
            "subject": "alice",
            "issuer_name": self.issuer_name,
            "authority": self.digest,
            "signing_key": self.signing_key,
            "not_before": datetime(2024, 1, 1, tzinfo=UTC),
            "not_after": datetime(2999, 1, 1, tzinfo=UTC),
            "scrypt_log2_n": 14,
        }
        return make_bundle(keys, **{**fields, **changes})

    def codebook(
        self, assignment: LabelAssignment, *, model: str = "digits", revoked: Any = ()
    ) -> Codebook:
        names = [f"class {i}" for i in range(assignment.num_classes)]
        metadata = ModelMetadata(model=model, class_names=names)
        return Codebook.make(
            assignment, metadata, self.read, self.slots, self.signing_key, revoked=revoked
        )


@dataclass(frozen=True)
class World:
    authority: Authority
    alice: BundleKeys
    revoked: BundleKeys
    assignment: LabelAssignment
    codebook: Codebook
    model: Path

    @property
    def codebook_file(self) -> Path:
        return self.model / ASSETS / FILE_NAME


def new_authority(name: str = "ACME") -> Authority:
    slots = SlotSecrets(os.urandom(32), 256)
    masters = MasterKey.generate(2), MasterKey.generate(2)
    return Authority(*masters, slots, SigningKey.generate(), name)


@pytest.fixture(scope="session")
def make_authority() -> Callable[..., Authority]:
    return new_authority


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Model `digits`: K = 10, h = 8, T = 32, one user revoked."""
    authority = new_authority()
    alice, revoked = authority.issue(), authority.issue()
    assignment = LabelAssignment.draw(10, 8, 32, authority.slots.count)
    codebook = authority.codebook(assignment, revoked=[revoked.z])
    model = tmp_path_factory.mktemp("models") / "digits" / "1"
    (model / ASSETS).mkdir(parents=True)
    (model / ASSETS / FILE_NAME).write_bytes(codebook.to_bytes())
    return World(authority, alice, revoked, assignment, codebook, model)


@pytest.fixture(scope="session")
def alice_file(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "alice.keybundle"
    path.write_bytes(world.authority.bundle(world.alice))
    return path


@pytest.fixture
def confused(world: World) -> np.ndarray:
    """Three predictions: classes 7, 2 and 1, spread over their homophones."""
    rows = np.zeros((3, world.codebook.num_labels), np.float32)
    for row, label in zip(rows, (7, 2, 1), strict=True):
        row[world.assignment.labels[label]] = 0.1  # 8 homophones: 0.8
        row[world.assignment.labels[0]] = 0.025  # 0.2
    return rows
