"""One small authority with users, a revoked user, a stranger and a codebook."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from keras_encryip.crypto.kem import MasterKey
from keras_encryip.crypto.signing import SigningKey
from keras_encryip.crypto.slots import ReaderKey, SlotSecrets
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook, ModelMetadata

SLOTS = 256


@dataclass(frozen=True)
class Owner:
    master: MasterKey
    slots: SlotSecrets
    signing_key: SigningKey

    @classmethod
    def new(cls, threshold: int = 1) -> "Owner":
        slots = SlotSecrets(os.urandom(32), SLOTS)
        return cls(MasterKey.generate(threshold), slots, SigningKey.generate())

    def issue(self) -> ReaderKey:
        point = self.master.issue()
        return ReaderKey(point, self.slots.of_user(point.key_id))

    def codebook(
        self, assignment: LabelAssignment, metadata: ModelMetadata | None = None, **options: Any
    ) -> Codebook:
        names = [f"class {i}" for i in range(assignment.num_classes)]
        metadata = metadata or ModelMetadata(model="m", class_names=names)
        return Codebook.make(
            assignment, metadata, self.master, self.slots, self.signing_key, **options
        )


@dataclass(frozen=True)
class World:
    """K = 5, h = 8, T = 64."""

    owner: Owner
    alice: ReaderKey
    bob: ReaderKey
    revoked: ReaderKey
    stranger: ReaderKey
    assignment: LabelAssignment
    metadata: ModelMetadata
    codebook: Codebook

    @property
    def real(self) -> np.ndarray:
        """The confused labels that stand for a class."""
        return np.sort(self.assignment.labels.ravel())


@pytest.fixture(scope="session")
def make_owner() -> Any:
    return Owner.new


@pytest.fixture(scope="session")
def world() -> World:
    owner = Owner.new()
    alice, bob, revoked = (owner.issue() for _ in range(3))
    assignment = LabelAssignment.draw(5, 8, 64, SLOTS)
    metadata = ModelMetadata(model="birds", class_names=list("abcde"), notes="Käuze")
    codebook = owner.codebook(assignment, metadata, revoked=[revoked.point.z])
    stranger = Owner.new().issue()
    return World(owner, alice, bob, revoked, stranger, assignment, metadata, codebook)
