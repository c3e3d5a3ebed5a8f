"""Every public function of the API pages has an example in its docstring, run as a doctest."""

import inspect
import sys
from collections.abc import Iterator
from doctest import DocTestFinder
from functools import cache, cached_property

import pytest

import keras_encryip as ke
from keras_encryip import client
from keras_encryip.client.serving import ServingClient

KERAS_CALLS = {
    "build",
    "call",
    "compile_from_config",
    "from_config",
    "get_config",
    "get_metrics_result",
    "load_own_variables",
    "on_epoch_end",
    "on_train_begin",
    "reset_metrics",
    "save_own_variables",
    "test_step",
    "train_step",
}
"""Methods that Keras defines and calls: users do not."""


def functions_of(owner: type) -> Iterator[tuple[str, str]]:
    """Names and full names of the methods and properties that this package defines."""
    ours = [base for base in owner.__mro__ if base.__module__.startswith("keras_encryip.")]
    keras_names = {name for base in owner.__mro__ if base not in ours for name in vars(base)}
    for base in ours:
        for name, member in vars(base).items():
            kinds = classmethod | staticmethod | property | cached_property
            is_function = inspect.isfunction(member) or isinstance(member, kinds)
            if not is_function or name.startswith("_") or name in KERAS_CALLS & keras_names:
                continue
            yield f"{owner.__name__}.{name}", f"{base.__module__}.{base.__qualname__}.{name}"


def public() -> dict[str, str]:
    """`{"Authority.issue": "keras_encryip.….Authority.issue"}`: what docs/reference shows."""
    values = [getattr(module, name) for module in (ke, client) for name in module.__all__]
    names: dict[str, str] = {}
    for value in [*values, ServingClient]:
        names[value.__name__] = f"{value.__module__}.{value.__qualname__}"
        if inspect.isclass(value):
            names |= functions_of(value)
    return names


@cache
def examples_of(module: str) -> set[str]:
    """Full names of what doctest finds examples in: it passes over a `cached_property`."""
    found = DocTestFinder(exclude_empty=True).find(sys.modules[module], module)
    return {test.name for test in found if test.examples}


@pytest.mark.parametrize("name", public())
def test_public_function_has_an_example(name: str) -> None:
    full = public()[name]
    module = max((m for m in sys.modules if full.startswith(f"{m}.")), key=len)
    assert full in examples_of(module), f"{full} has no example in its docstring"
