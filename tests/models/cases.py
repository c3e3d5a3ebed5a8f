"""Classifiers of all kinds, each with inputs: what `protect` must take without a change."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from tests.models.classifiers import (
    COLOURS,
    IMAGES,
    NUMBERS,
    SERIES,
    SOFT,
    TEXTS,
    TOKENS,
    WORDS,
    adapted_normalization,
    attention,
    called,
    chain,
    flat,
    frozen_backbone,
    frozen_head,
    frozen_in_layer,
    frozen_in_subclass,
    head_used_twice,
    lookup,
    lora,
    of_inputs,
    quantized,
    sequential,
    set_afterwards,
    shared_layers,
    small_mobilenet,
    small_unet,
    tagging,
    text_vectorization,
    with_attribute_set,
    with_policy,
)
from tests.models.custom_layers import (
    AddsLoss,
    FunctionalSubclass,
    HalvedDense,
    K,
    NotInConfig,
    Outer,
    SetAfterwards,
    Subclass,
    Tied,
    Valid,
    WithoutKwargs,
    WrappedHead,
)


@dataclass(frozen=True)
class Case:
    """A classifier and inputs for it.

    Attributes:
        make: builds the classifier.
        x: inputs, `ROWS` of them.
        tolerance: of step 0, by the dtype of the classifier's own outputs.
        may_refuse: `protect` may refuse it instead.
        head_variables: how many trainable variables are the head's.
    """

    make: Callable[[], keras.Model]
    x: Any = None
    tolerance: float = 1e-5
    may_refuse: bool = False
    head_variables: int = 2


# --- what must survive -------------------------------------------------------------

STATE: dict[str, Case] = {
    "normalization": Case(adapted_normalization, NUMBERS),
    "text-vectorization": Case(text_vectorization, tf.constant(TEXTS)),
    "string-lookup": Case(
        lookup(layers.StringLookup, WORDS, "string"), tf.constant(WORDS)[:, None]
    ),
    "integer-lookup": Case(
        lookup(layers.IntegerLookup, TOKENS[:, 0] * 11, "int64"), TOKENS[:, :1].astype("int64") * 11
    ),
    "discretization": Case(
        lookup(layers.Discretization, NUMBERS, "float32", num_bins=4), NUMBERS[:, :1]
    ),
    "attribute-in-config": Case(lambda: set_afterwards(SetAfterwards), IMAGES),
    "no-kwargs": Case(lambda: flat(WithoutKwargs(2.0), layers.Dense(K, **SOFT)), IMAGES),
    "dense-subclass": Case(
        lambda: flat(HalvedDense(5, activation="tanh"), layers.Dense(K, **SOFT)), IMAGES
    ),
    "lambda": Case(
        lambda: flat(layers.Lambda(lambda z: z * 2.0 - 1.0), layers.Dense(K, **SOFT)), IMAGES
    ),
    "lora-dense": Case(lambda: lora("hidden"), IMAGES),
    "lora-einsum": Case(
        lambda: lora("hidden", lambda: layers.EinsumDense("ab,bc->ac", 6, bias_axes="c")), IMAGES
    ),
    "int8-hidden": Case(lambda: quantized(1), IMAGES),
    "seeds": Case(
        lambda: flat(
            layers.GaussianNoise(0.5, seed=3), layers.Dropout(0.5, seed=4), layers.Dense(K, **SOFT)
        ),
        IMAGES,
    ),
    "frozen-in-subclass": Case(frozen_in_subclass, IMAGES),
    "frozen-in-layer": Case(frozen_in_layer, IMAGES),
    "frozen-backbone": Case(frozen_backbone, IMAGES),
    "frozen-head": Case(frozen_head, IMAGES, head_variables=0),
    "two-levels": Case(lambda: called(Outer(2), IMAGES[:1]), IMAGES),
}

# --- other kinds ---------------------------------------------------------------------

CASES: dict[str, Case] = {
    **STATE,
    "softmax": Case(lambda: sequential(layers.Dense(K, **SOFT)), IMAGES),
    "logits": Case(lambda: sequential(layers.Dense(K)), IMAGES),
    "activation-layer": Case(
        lambda: sequential(layers.Dense(K), layers.Activation("softmax")), IMAGES
    ),
    "softmax-layer": Case(lambda: sequential(layers.Dense(K), layers.Softmax()), IMAGES),
    "no-bias": Case(
        lambda: sequential(layers.Dense(K, use_bias=False, **SOFT)), IMAGES, head_variables=1
    ),
    "unbuilt": Case(lambda: keras.Sequential([layers.Flatten(), layers.Dense(K, **SOFT)]), IMAGES),
    "nested-sequential": Case(
        lambda: keras.Sequential(
            [keras.layers.InputLayer(shape=(8, 8, 1)), sequential(), layers.Dense(K, **SOFT)]
        ),
        IMAGES,
    ),
    "nested-head": Case(
        lambda: flat(keras.Sequential([keras.Input((6,)), layers.Dense(K), layers.Softmax()])),
        IMAGES,
    ),
    "shared-layers": Case(shared_layers, IMAGES),
    "functional-subclass": Case(FunctionalSubclass, IMAGES),
    "subclass-softmax": Case(lambda: called(Subclass(), IMAGES[:1]), IMAGES),
    "subclass-logits": Case(lambda: called(Subclass("logits"), IMAGES[:1]), IMAGES),
    "subclass-softmax-layer": Case(lambda: called(Subclass("layer"), IMAGES[:1]), IMAGES),
    "subclass-softmax-in-call": Case(lambda: called(Subclass("call"), IMAGES[:1]), IMAGES),
    "subclass-head-in-list": Case(lambda: called(Subclass("list"), IMAGES[:1]), IMAGES),
    "subclass-head-in-dict": Case(lambda: called(Subclass("dict"), IMAGES[:1]), IMAGES),
    "subclass-three-levels": Case(lambda: called(Outer(3, "call"), IMAGES[:1]), IMAGES),
    "subclass-in-sequential": Case(
        lambda: keras.Sequential([keras.Input((8, 8, 1)), Subclass("list")]), IMAGES
    ),
    "subclass-attribute-set": Case(with_attribute_set, IMAGES),
    "attribute-not-in-config": Case(lambda: set_afterwards(NotInConfig), IMAGES),
    "ops-softmax": Case(lambda: flat(layers.Dense(K), lambda z: ops.softmax(z, axis=-1)), IMAGES),
    "activations-softmax": Case(lambda: flat(layers.Dense(K), keras.activations.softmax), IMAGES),
    "sigmoid": Case(lambda: sequential(layers.Dense(1, "sigmoid", name="head")), IMAGES),
    "sigmoid-layer": Case(
        lambda: sequential(layers.Dense(1), layers.Activation("sigmoid")), IMAGES
    ),
    "ops-sigmoid": Case(lambda: flat(layers.Dense(1), ops.sigmoid), IMAGES),
    "subclass-sigmoid": Case(lambda: called(Subclass("sigmoid"), IMAGES[:1]), IMAGES),
    "subclass-sigmoid-in-call": Case(lambda: called(Subclass("sigmoid-call"), IMAGES[:1]), IMAGES),
    "conv-head": Case(lambda: small_unet(layers.Conv2D(K, 1, **SOFT)), IMAGES),
    "conv-head-softmax-layer": Case(
        lambda: small_unet(keras.Sequential([layers.Conv2D(K, 1), layers.Softmax()])), IMAGES
    ),
    "conv-1d-head": Case(
        lambda: chain(layers.Conv1D(4, 3), layers.Conv1D(K, 1, **SOFT), shape=(7, 4)), SERIES
    ),
    "mobilenet-v1": Case(lambda: small_mobilenet(1), IMAGES),
    "mobilenet-v3": Case(lambda: small_mobilenet(3), IMAGES),
    "time-distributed": Case(
        lambda: tagging(layers.TimeDistributed(layers.Dense(K, activation="softmax"))), TOKENS
    ),
    "masked-tagging": Case(lambda: tagging(mask_zero=True), TOKENS),
    "einsum-head": Case(
        lambda: chain(
            layers.EinsumDense("abc,cd->abd", (None, K), bias_axes="d", **SOFT), shape=(7, 4)
        ),
        SERIES,
    ),
    "attention": Case(attention, SERIES),
    "dict-inputs": Case(lambda: of_inputs(dict), {"first": NUMBERS, "second": SERIES}),
    "uint8-rescaling": Case(
        lambda: chain(
            layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(K, **SOFT), dtype="uint8"
        ),
        (IMAGES * 255).astype("uint8"),
    ),
    "augmentation": Case(
        lambda: chain(
            layers.RandomFlip(seed=1),
            layers.RandomRotation(0.1, seed=2),
            layers.Flatten(),
            layers.Dense(K, **SOFT),
        ),
        IMAGES,
    ),
    "open-valid": Case(
        lambda: chain(
            layers.Conv2D(4, 5, activation="relu"),
            layers.Conv2D(4, 5),
            layers.GlobalMaxPooling2D(),
            layers.Dense(K, **SOFT),
            shape=(None, None, 3),
        ),
        COLOURS,
    ),
    "open-valid-subclass": Case(
        lambda: chain(Valid(), shape=(None, None, 3)),
        COLOURS,
    ),
    "mixed-bfloat16": Case(
        with_policy("mixed_bfloat16", lambda: flat(layers.Dense(K, **SOFT))), IMAGES, 1e-2
    ),
    "mixed-float32-head": Case(
        with_policy("mixed_float16", lambda: flat(layers.Dense(K, dtype="float32", **SOFT))),
        IMAGES,
    ),
    "float64": Case(with_policy("float64", lambda: flat(layers.Dense(K, **SOFT))), IMAGES),
    "add-loss": Case(lambda: flat(AddsLoss(), layers.Dense(K, **SOFT)), IMAGES),
    "activity-regularizer": Case(
        lambda: flat(
            layers.Dense(5, activity_regularizer=keras.regularizers.L2(0.1)),
            layers.Dense(K, **SOFT),
        ),
        IMAGES,
    ),
    "batch-normalization": Case(
        lambda: flat(layers.BatchNormalization(), layers.ReLU(), layers.Dense(K, **SOFT)), IMAGES
    ),
    # --- refused, or all is as it was ---
    "list-inputs": Case(lambda: of_inputs(list), [NUMBERS, SERIES], may_refuse=True),
    "tuple-inputs": Case(lambda: of_inputs(tuple), (NUMBERS, SERIES), may_refuse=True),
    "dropout-after-head": Case(
        lambda: flat(layers.Dense(K), layers.Dropout(0.5, seed=1), layers.Softmax()),
        IMAGES,
        may_refuse=True,
    ),
    "temperature": Case(
        lambda: flat(layers.Dense(K), layers.Rescaling(0.5), layers.Softmax()),
        IMAGES,
        may_refuse=True,
    ),
    "soft-cap": Case(
        lambda: flat(layers.Dense(K), lambda z: 2 * ops.tanh(z / 2), layers.Softmax()),
        IMAGES,
        may_refuse=True,
    ),
    "normalised-scores": Case(
        lambda: flat(layers.Dense(K), layers.BatchNormalization(), layers.Softmax()),
        IMAGES,
        may_refuse=True,
        head_variables=4,
    ),
    "dense-subclass-head": Case(lambda: flat(HalvedDense(K, **SOFT)), IMAGES, may_refuse=True),
    "wrapped-head": Case(
        lambda: flat(WrappedHead(layers.Dense(K, activation="softmax"))), IMAGES, may_refuse=True
    ),
    "spectral-normalization": Case(
        lambda: flat(layers.SpectralNormalization(layers.Dense(K, activation="softmax"))),
        IMAGES,
        may_refuse=True,
    ),
    "lora-head": Case(lambda: lora("head"), IMAGES, may_refuse=True, head_variables=3),
    "int8-head": Case(lambda: quantized(1, 3), IMAGES, may_refuse=True, head_variables=1),
    "head-used-twice": Case(head_used_twice, IMAGES, may_refuse=True),
    "tied-head": Case(lambda: called(Tied(), TOKENS[:1] % K), TOKENS % K, may_refuse=True),
    "softmax-axis-1": Case(
        lambda: chain(layers.Dense(K), layers.Permute((2, 1)), layers.Softmax(1), shape=(7, 4)),
        SERIES,
        may_refuse=True,
    ),
    "permuted-outputs": Case(
        lambda: chain(layers.Dense(K, **SOFT), layers.Permute((2, 1)), shape=(7, 4)),
        SERIES,
        may_refuse=True,
    ),
    "strided-conv-head": Case(
        lambda: small_unet(layers.Conv2D(K, 3, strides=2, **SOFT)), IMAGES, may_refuse=True
    ),
    "sigmoid-per-pixel": Case(
        lambda: small_unet(layers.Conv2D(1, 1, activation="sigmoid")), IMAGES, may_refuse=True
    ),
}


def fresh(name: str) -> keras.Model:
    keras.utils.set_random_seed(7)
    return CASES[name].make()
