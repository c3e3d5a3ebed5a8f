"""What a protected model takes: settings in their ranges; losses and metrics of probabilities."""

import functools
import inspect
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_encryip.errors import ArgumentError
from keras_encryip.models.data import single
from keras_encryip.models.homophones import AUTOMATIC, STRATEGIES

_OF_ONE_OUTPUT = ("loss", "metrics", "weighted_metrics", "loss_weights")
_SHIFT = 2.5


def of_one_output(
    given: tuple[Any, ...], named: dict[str, Any], output: str
) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of `compile` without the dictionaries that name the one output.

    Raises:
        ArgumentError: one names another output.
    """
    args = [*given[:1], *(_of_output("argument", value, output) for value in given[1:])]
    return args, {
        name: _of_output(name, value, output) if name in _OF_ONE_OUTPUT else value
        for name, value in named.items()
    }


def _of_output(argument: str, value: Any, output: str) -> Any:
    if isinstance(value, dict) and value.keys() - {output}:
        raise ArgumentError(
            f"`{argument}` of `compile` must name the one output, {output!r}, or be no "
            f"dictionary. Received: keys {', '.join(map(repr, value))}"
        )
    return single(value)


def check_compiled(model: Any) -> None:
    """Refuse losses and metrics that take scores instead of probabilities.

    Args:
        model: compiled.

    Raises:
        ArgumentError: names the loss or metric.
    """
    for what, given in (("loss", model.loss), *_metrics(model)):
        for each in keras.tree.flatten(single(given)):
            if _from_logits(each) or (what == "loss" and _applies_softmax(each, model)):
                name = getattr(each, "name", getattr(each, "__name__", repr(type(each))))
                raise ArgumentError(
                    "A protected model decodes to probabilities: compile it with "
                    f"`from_logits=False`. Received: {what}={name!r} with from_logits=True"
                )


def _metrics(model: Any) -> Iterator[tuple[str, Any]]:
    compiled = getattr(model, "_compile_metrics", None)
    if compiled is not None:
        yield "metrics", [compiled._user_metrics, compiled._user_weighted_metrics]


def _from_logits(given: Any) -> bool:
    """Whether a loss, metric or function says `from_logits=True` anywhere."""
    if isinstance(given, functools.partial):
        return bool(given.keywords.get("from_logits")) or _from_logits(given.func)
    settings = [getattr(given, "_fn_kwargs", None) or {}, getattr(given, "__dict__", {})]
    if any(kept.get("from_logits") or kept.get("_from_logits") for kept in settings):
        return True
    inner = getattr(given, "fn", None) or getattr(given, "_fn", None)
    if inner is not None and inner is not given and _from_logits(inner):
        return True
    if not inspect.isfunction(given):
        return False
    default = inspect.signature(given).parameters.get("from_logits")
    return default is not None and default.default is True


def _applies_softmax(loss: Any, model: Any) -> bool:
    """Whether a loss of the user's own turns scores into probabilities itself.

    A softmax does not see what is added to all scores; a loss of probabilities does. Found by
    trying both kinds of labels.
    """
    if not callable(loss) or type(loss).__module__.startswith("keras."):
        return False
    if getattr(loss, "__module__", "").startswith("keras."):
        return False
    classes = model.num_classes
    given = np.random.default_rng(0).dirichlet(np.ones(classes), 4).astype("float32")
    given = given[:, 1:] if model.binary else given
    sparse = np.arange(4) % classes
    for labels in (sparse, np.eye(classes, dtype="float32")[sparse], sparse[:, None]):
        plain, moved, other = (
            _value(loss, labels, scores) for scores in (given, given + _SHIFT, given[::-1])
        )
        if plain is not None and moved is not None and other is not None:
            same = np.allclose(plain, moved, rtol=1e-4)
            return bool(same and not np.allclose(plain, other, rtol=1e-3))
    return False


def _value(loss: Any, labels: Any, given: Any) -> np.ndarray | None:
    """What a loss gives; `None` where it takes no such labels."""
    try:
        value = loss(keras.ops.convert_to_tensor(labels), keras.ops.convert_to_tensor(given))
        return np.asarray(keras.ops.convert_to_numpy(value))
    except Exception:  # of the user's own code
        return None


def ignored_class(loss: Any) -> int | None:
    """The class that a loss ignores, where it says so."""
    for each in keras.tree.flatten(loss):
        inner = each.keywords if isinstance(each, functools.partial) else {}
        kept = {**(getattr(each, "_fn_kwargs", None) or {}), **inner}
        value = kept.get("ignore_class", getattr(each, "ignore_class", None))
        if value is not None:
            return int(value)
    return None


def check_settings(
    strategy: str, confusion_weight: float, teacher_weight: float, temperature: float
) -> None:
    """Refuse settings out of range.

    Raises:
        ArgumentError: names the setting.
    """
    known = (AUTOMATIC, *STRATEGIES)
    if strategy not in known:
        raise ArgumentError(
            f"`strategy` must be {' or '.join(map(repr, known))}. Received: strategy={strategy!r}"
        )
    if not 0 <= confusion_weight < math.inf:
        raise ArgumentError(
            "`confusion_weight` must be a number, not negative. "
            f"Received: confusion_weight={confusion_weight}"
        )
    if not 0 <= teacher_weight <= 1:
        raise ArgumentError(
            f"`teacher_weight` must be in 0 … 1. Received: teacher_weight={teacher_weight}"
        )
    if not 0 < temperature < math.inf:
        raise ArgumentError(
            f"`temperature` must be a positive number. Received: temperature={temperature}"
        )
