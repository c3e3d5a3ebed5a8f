"""Classifiers that train in a way of their own: the protected model goes on with it."""

import functools
import inspect
from typing import Any

import keras

from keras_encryip.models.headless import Headless

_STEPS = (
    "train_step",
    "test_step",
    "predict_step",
    "compute_loss",
    "compute_metrics",
    "metrics",
    "compile",
    "fit",
    "evaluate",
    "predict",
    "train_on_batch",
    "test_on_batch",
    "predict_on_batch",
)


_GRAPH: dict[str, Any] = {
    "_operations": property(lambda self: self.layers),
    "_nodes": frozenset(),
    "_nodes_by_depth": {},
}
"""What `summary` and `plot_model` ask a graph for. Else they would get the classifier's layers."""


def has_own_steps(kind: type) -> bool:
    """Whether a class of classifiers trains or predicts in a way of its own."""
    custom = [
        c for c in kind.__mro__ if c.__module__.partition(".")[0] not in ("keras", "builtins")
    ]
    return any(name in vars(c) for c in custom for name in _STEPS)


def with_own_steps(kind: Any, backbone: keras.layers.Layer) -> Any:
    """The class of protected models whose training goes on by the classifier's class.

    It is a subclass of both, so that `super()` in the classifier's methods finds Keras's. What
    these methods want of the classifier, its attributes, they get from the classifier.

    Args:
        kind: `ProtectedModel`.
        backbone: of the model.
    """
    if not isinstance(backbone, Headless) or not has_own_steps(type(backbone.whole())):
        return kind
    of_classifier = type(backbone.whole())
    graphs = [c for c in of_classifier.__mro__ if c.__module__.startswith("keras.")]
    known = set(dir(keras.Model))
    as_model = {
        name: inspect.getattr_static(keras.Model, name)
        for c in graphs
        if not issubclass(keras.Model, c)
        for name in vars(c)
        if name in known and name not in ("__dict__", "__weakref__", "__class__", "__new__")
    }
    bases = [c for c in reversed(kind.__mro__) if issubclass(c, keras.Model) and c not in graphs]
    of_ours = {n: v for c in bases for n, v in vars(c).items() if n in as_model}
    # What `ProtectedModel` keeps under a name that is a property there.
    ours = {n: None for n in kind.ATTRIBUTES if hasattr(of_classifier, n)}
    namespace = {
        **as_model,
        **of_ours,
        **(_GRAPH if graphs else {}),
        **ours,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__init__": _initialised(kind, of_classifier),
        "__dir__": _listed(kind, of_classifier),
        "__getattr__": _of_classifier,
        "__reduce__": _pickled(kind),
    }
    mixed = type(kind.__name__, (kind, of_classifier), namespace)
    for each in (mixed, kind):  # it is saved under the name of `kind`, whose `from_config` makes it
        keras.saving.register_keras_serializable(package="keras_encryip")(each)
    return mixed


def _initialised(kind: Any, of_classifier: type) -> Any:
    """An `__init__` that takes what was set on the classifier in place of its class's values."""

    def initialise(self: Any, backbone: keras.layers.Layer, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, backbone, *args, **kwargs)
        for name, value in vars(backbone.whole()).items():
            if hasattr(of_classifier, name) and name not in {*_of_keras(), *kind.ATTRIBUTES}:
                vars(self)[name] = value  # out of Keras's sight: it may be, or hold, the head

    return initialise


def _listed(kind: Any, of_classifier: type) -> Any:
    """A `__dir__` without what only the classifier's class has: Keras saves all that is listed,
    and a property may give the head. The classifier's state is the backbone's."""
    hidden = (set(dir(of_classifier)) | _GRAPH.keys()) - set(dir(kind))

    def listed(self: Any) -> list[str]:
        return [name for name in object.__dir__(self) if name not in hidden]

    return listed


def _pickled(kind: Any) -> Any:
    """A `__reduce__` that names the class of all protected models, which can be imported."""

    def reduce(self: Any) -> tuple[Any, ...]:
        return kind._unpickle_model, kind.__reduce__(self)[1]

    return reduce


def _of_classifier(self: Any, name: str) -> Any:
    """An attribute that only the classifier has, and not every Keras model."""
    backbone = vars(self).get("backbone")
    if backbone is None or name.startswith("__") or name in _of_keras():
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
    return getattr(backbone.whole(), name)


@functools.cache
def _of_keras() -> frozenset[str]:
    """The attributes that Keras itself gives to a model that is built and compiled."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return frozenset(vars(model)) | {"history", "_functional"}
