"""The start of a protected model: it answers exactly as the classifier does."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_encryip.errors import ArgumentError
from keras_encryip.models.backbone import Graft, graft
from keras_encryip.models.by_class import unsteady_layer
from keras_encryip.models.head import copy_head, layer_name, probabilities
from keras_encryip.models.probe import answer_to_probe, check_same, the_output
from keras_encryip.models.secrets import UnlockedSecrets


def start_head(model: Any, secrets: UnlockedSecrets, input_shape: Any) -> None:
    """The head of a model whose classifier was not built until now starts as copies, too."""
    parts = secrets.original
    if parts is None or parts.head.kernel is not None:
        return
    with tf.init_scope():  # Keras builds models inside of graphs
        if not parts.classifier.built:
            parts.classifier.build(input_shape)
        built = graft(parts.classifier)
        copy_head(model.confused_labels, built.head, secrets.assignment())
        secrets.original = Graft(built.classifier, model.backbone, built.head, built.inputs)


def check_start(model: Any, secrets: UnlockedSecrets, inputs: Any = None) -> None:
    """Compare a model, before its first step, with the classifier that it was made of.

    Args:
        inputs: real ones; by default random ones.

    Raises:
        ArgumentError: it answers in another way, or learns other variables; names the layer.
    """
    parts = secrets.original
    if parts is None or parts.head.kernel is None:
        return
    classifier, head = parts.classifier, parts.head
    if inputs is not None and not _is_at_start(model, secrets, parts):
        return
    hint = "" if inputs is None else " Was it trained since `protect`? The two share their layers."
    if inputs is None:
        _, inputs, outputs = answer_to_probe(classifier, parts.inputs)
    else:
        outputs = the_output(classifier(inputs, training=False))
    try:
        check_same(
            secrets.decode(model(inputs, training=False)),
            probabilities(outputs, head.outputs),
            f"Without {layer_name(head.layer)}, the protected model",
            rounded=parts.is_rounded,
            hint=hint,
        )
    except ArgumentError:
        unsteady = unsteady_layer(classifier, inputs)
        if unsteady is None:
            raise
    else:
        _check_trainable(classifier, parts)
        return
    raise ArgumentError(
        f"{layer_name(unsteady)} of `classifier` {classifier.name!r} gives other outputs for the "
        "same inputs, also in inference: nothing can be compared. Let it do so in training only."
    )


def _is_at_start(model: Any, secrets: UnlockedSecrets, parts: Graft) -> bool:
    """Whether the head has the classifier's columns still: its owner may have loaded others."""
    kernel = keras.ops.convert_to_numpy(model.confused_labels.kernel)
    columns = kernel[:, secrets.assignment().labels[:, 0]]
    return parts.head.kernel is not None and np.array_equal(columns, parts.head.kernel)


def _check_trainable(classifier: keras.Model, parts: Graft) -> None:
    """The same variables learn, but for the head's."""
    of_head = {id(v) for v in getattr(parts.head.layer, "variables", [])}
    before = {id(v): v for v in classifier.trainable_variables if id(v) not in of_head}
    after = {id(v): v for v in parts.backbone.trainable_variables if id(v) not in of_head}
    for key in before.keys() ^ after.keys():
        variable = {**before, **after}[key]
        raise ArgumentError(
            f"The protected model would {'not ' if key in before else ''}train variable "
            f"{variable.path!r}, which `classifier` {classifier.name!r} does"
            f"{'' if key in before else ' not'}. Make its layer an attribute of the classifier."
        )
