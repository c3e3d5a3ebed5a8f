"""A classifier of any class, run up to its head."""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from keras_encryip.errors import FormatError
from keras_encryip.models.head import is_head

_watched = threading.local()


def _listeners() -> dict[int, Callable[[Any], None]]:
    """Who waits for the inputs of which layer, in this thread."""
    if not hasattr(_watched, "listeners"):
        _watched.listeners = {}
    listeners: dict[int, Callable[[Any], None]] = _watched.listeners
    return listeners


def tap(head: keras.layers.Layer, units: int) -> None:
    """From now on a head can be captured. Unless it is, it does what it always did.

    Args:
        head: gets an attribute `call` of its own, which stands before that of its class.
        units: of its output.
    """
    name = "call" if getattr(head, "quantization_mode", None) is None else "quantized_call"
    if name in vars(head):
        return
    method = getattr(head, name)

    def tapped(*args: Any, **kwargs: Any) -> Any:
        listener = _listeners().get(id(head))
        if listener is None:
            return method(*args, **kwargs)
        features = args[0] if args else next(iter(kwargs.values()))
        listener(features)
        # Whatever is made of it is thrown away. The head's own weights are never read, so that
        # no graph, and no export, knows them.
        return ops.zeros((*ops.shape(features)[:-1], units), features.dtype)

    vars(head)[name] = tapped


@contextmanager
def _captured(head: keras.layers.Layer) -> Iterator[list[Any]]:
    """The list fills with what the head is called with meanwhile."""
    features: list[Any] = []
    listeners = _listeners()
    before = listeners.get(id(head))
    listeners[id(head)] = features.append
    try:
        yield features
    finally:
        if before is None:
            del listeners[id(head)]
        else:
            listeners[id(head)] = before


class _Subject:
    """The classifier and its head, out of Keras's sight: the head must not be saved."""

    def __init__(self, classifier: keras.Model) -> None:
        self.classifier = classifier
        self.head: keras.layers.Layer | None = None


@keras.saving.register_keras_serializable(package="keras_encryip")
class Headless(keras.layers.Layer):
    """A classifier that is run by its own `call`, up to its head: it returns features.

    The classifier is used as it is, with its own layers. All of its state is tracked, but for the
    head's.

    Args:
        classifier: of any class; unbuilt after loading.
        head: where the head is: a number in each list of sublayers, from the classifier down.
        units: of the head.
        features: axes of the features between batch and last, where the classifier reshapes the
            head's outputs; `None`: as they are.
    """

    def __init__(
        self,
        classifier: keras.Model,
        head: list[int],
        units: int,
        features: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._subject = _Subject(classifier)
        self.head = list(head)
        self.units = units
        self.features = None if features is None else list(features)
        if classifier.built:
            self._attach()

    def whole(self) -> keras.Model:
        """The classifier with its head. No property: Keras saves all that attributes show."""
        return self._subject.classifier

    def _attach(self) -> None:
        """Track the state of all layers but the head."""
        above: list[Any] = [self.whole()]
        for index in self.head:
            above += sublayers(above[-1])[index : index + 1]
        *holders, head = above
        if len(holders) != len(self.head) or not is_head(head):
            raise FormatError(
                f"{type(self.whole()).__name__} {self.whole().name!r} is built of other "
                "layers than when it was protected: its head is not found. Load the model with "
                "the code that it was saved with."
            )
        tap(head, self.units)
        self._subject.head = head
        inside = {id(layer) for layer in above}
        variables = [v for layer in holders for v in own_variables(layer)]
        parts = [part for holder in holders for part in sublayers(holder)]
        generators = [g for layer in holders for g in layer._seed_generators]
        self.own = list({id(v): v for v in variables}.values())
        self.parts = list({id(p): p for p in parts if id(p) not in inside}.values())
        self.generators = list({id(g): g for g in generators}.values())
        self.counters = [m for layer in holders for m in layer._metrics]

    def build(self, input_shape: Any) -> None:
        if self._subject.head is None:
            if not self.whole().built:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    self.whole()(keras.tree.map_shape_structure(keras.KerasTensor, input_shape))
            self._attach()
        self.built = True

    def call(self, inputs: Any) -> Any:
        assert self._subject.head is not None  # `build` came first
        with _captured(self._subject.head) as seen:
            self.whole()(inputs)
        if self.features is None:
            return seen[-1]
        batch = ops.shape(seen[-1])[0] if -1 in self.features else -1
        return ops.reshape(seen[-1], (batch, *self.features, seen[-1].shape[-1]))

    def get_config(self) -> dict[str, Any]:
        classifier = keras.saving.serialize_keras_object(self.whole())
        classifier.pop("compile_config", None)
        settings = {"head": self.head, "units": self.units, "features": self.features}
        return {**super().get_config(), "classifier": classifier, **settings}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Headless":
        if "units" not in config:
            raise FormatError(
                f"Layer {config.get('name')!r} is of a model protected by keras_encryip 0.3, which "
                "reads it. Protect the classifier anew with this release, or use release 0.3."
            )
        config = dict(config)
        return cls(keras.saving.deserialize_keras_object(config.pop("classifier")), **config)


def sublayers(layer: Any) -> list[Any]:
    """The layers that a layer holds itself, in the order of Keras's tracking."""
    return list(layer._layers)


def own_variables(layer: Any) -> list[Any]:
    """The variables that a layer holds itself."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def path_to(layer: Any, target: Any) -> list[int] | None:
    """Where a layer is below another: a number in each list of sublayers."""
    for i, below in enumerate(sublayers(layer)):
        if below is target:
            return [i]
        further = path_to(below, target)
        if further is not None:
            return [i, *further]
    return None


def all_layers(layer: Any) -> list[Any]:
    """All layers below a layer, from the top down, each once."""
    layers: dict[int, Any] = {}
    for below in sublayers(layer):
        for each in [below, *all_layers(below)]:
            layers.setdefault(id(each), each)
    return list(layers.values())
