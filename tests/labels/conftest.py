"""One small authority with users, a revoked user, a stranger and a codebook."""

from dataclasses import dataclass

import numpy as np
import pytest

from keras_encryip.crypto.kem import MasterKey, UserKey
from keras_encryip.crypto.signing import SigningKey
from keras_encryip.crypto.tracing_header import TracingHeader
from keras_encryip.labels.assignment import LabelAssignment
from keras_encryip.labels.codebook import Codebook, ModelMetadata


@dataclass(frozen=True)
class World:
    """K = 5, h = 8, T = 64: five real blocks of 8 and eight tracing blocks of 8."""

    master: MasterKey
    signing_key: SigningKey
    alice: UserKey
    bob: UserKey
    revoked: UserKey
    stranger: UserKey
    assignment: LabelAssignment
    metadata: ModelMetadata
    codebook: Codebook
    tracing: tuple[TracingHeader, ...]

    @property
    def real(self) -> np.ndarray:
        """The confused labels that stand for a class."""
        return np.sort(self.assignment.labels.ravel())


@pytest.fixture(scope="session")
def world() -> World:
    master, signing_key = MasterKey.generate(1), SigningKey.generate()
    alice, bob, revoked = (master.issue() for _ in range(3))
    assignment = LabelAssignment.draw(5, 8, 64)
    metadata = ModelMetadata(model="birds", class_names=list("abcde"), notes="Käuze")
    codebook, tracing = Codebook.make(
        assignment, metadata, master, signing_key, revoked=[revoked.z]
    )
    stranger = MasterKey.generate(1).issue()
    return World(
        master,
        signing_key,
        alice,
        bob,
        revoked,
        stranger,
        assignment,
        metadata,
        codebook,
        tracing,
    )
