"""Small data sets with a known structure."""

import numpy as np
import pytest

BLOB_CENTRES = np.array(
    [[[0, 0, 0], [9, 0, 0]], [[0, 9, 0], [0, 0, 9]]], np.float32
)  # [class, sub-class, feature]


@pytest.fixture(scope="session")
def blobs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two classes of two well separated sub-classes: x `[400, 3]`, class, sub-class."""
    random = np.random.default_rng(0)
    classes, parts = np.arange(400) % 2, np.arange(400) // 2 % 2
    noise = random.normal(0, 0.3, (400, 3))
    return (BLOB_CENTRES[classes, parts] + noise).astype(np.float32), classes, parts
