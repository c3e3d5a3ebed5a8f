"""`put`: how tests ask a service."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from keras_encryip.tracing.service.query import ask
from tests.tracing.service.asking import INPUTS, NAMES


@pytest.fixture
def naps() -> list[float]:
    return []


@pytest.fixture
def inputs() -> np.ndarray:
    return INPUTS


@pytest.fixture
def put(naps: list[float], inputs: np.ndarray) -> Callable[..., np.ndarray]:
    """`put(service, …)`: `ask` with these inputs, which notes its naps."""

    def put(predict: Any, inputs: np.ndarray = inputs, **options: Any) -> np.ndarray:
        settings = {"class_names": NAMES, "batch_size": 4, "sleep": naps.append}
        return ask(predict, inputs, **{**settings, **options})[0]

    return put
